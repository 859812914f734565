//! Tables in the look of Docker's client: Go's tabwriter with cells of at least ten columns and a padding of three.

/// Columns of a cell at least.
const WIDTH_MIN: usize = 10;
/// Blanks after the widest cell of a column.
const PADDING: usize = 3;

/// Renders headings and rows; the last cell of a row is not padded.
pub(crate) fn render<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut text = headings.join("\t") + "\n";
    for row in rows {
        text.push_str(&row.join("\t"));
        text.push('\n');
    }
    align(&text)
}

/// Replaces tabs by blanks so that cells stand below each other.
///
/// Columns are as wide as their widest cell in lines that follow each other. What no tab ends is not padded.
pub(crate) fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut first = 0;
        while first < lines.len() {
            let block = widths[first..].iter().take_while(|widths| widths.len() > column).count();
            let cells = lines[first..first + block].iter().map(|cells| cells[column].chars().count());
            let width = cells.max().map_or(0, |widest| (widest + PADDING).max(WIDTH_MIN));
            widths[first..first + block].iter_mut().for_each(|widths| widths[column] = width);
            first += block.max(1);
        }
    }
    let mut aligned = String::new();
    for (cells, widths) in lines.iter().zip(&widths) {
        for (column, cell) in cells.iter().enumerate() {
            aligned.push_str(cell);
            let width = widths.get(column).copied().unwrap_or(0);
            aligned.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
        }
        aligned.push('\n');
    }
    aligned
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

    #[test]
    fn a_column_ends_where_a_line_has_none() {
        assert_eq!(
            align("a\tb\nlonger than ten\tc\nno cells\nd\t\n"),
            "a                 b\nlonger than ten   c\nno cells\nd         \n"
        );
        assert_eq!(align(""), "");
    }
}
