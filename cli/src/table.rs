//! Tables in the look of Docker's client: Go's tabwriter with cells of at least ten columns and a padding of three.

/// Columns of a cell at least.
const WIDTH_MIN: usize = 10;
/// Blanks after the widest cell of a column.
const PADDING: usize = 3;

/// Renders headings and rows; the last cell of a row is not padded.
pub(crate) fn render<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    push_row(&mut text, &widths, headings.iter().copied());
    for row in rows {
        push_row(&mut text, &widths, row.iter().map(String::as_str));
    }
    text
}

fn push_row<'a>(text: &mut String, widths: &[usize], cells: impl Iterator<Item = &'a str>) {
    let last = widths.len() - 1;
    for (column, cell) in cells.enumerate() {
        text.push_str(cell);
        if column < last {
            let width = (widths[column] + PADDING).max(WIDTH_MIN);
            text.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_dockers() {
        let rows = [["zw28l6ocpszc".to_owned(), "web".to_owned(), "*:80->80/tcp".to_owned()]];
        assert_eq!(
            render(["ID", "NAME", "PORTS"], &rows),
            "ID             NAME      PORTS\nzw28l6ocpszc   web       *:80->80/tcp\n"
        );
        assert_eq!(render(["ID", "NAME"], &[]), "ID        NAME\n");
    }
}
