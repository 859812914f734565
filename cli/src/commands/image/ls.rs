//! `shoal image ls`.

use serde::Serialize;

use crate::client::Client;
use crate::error::CliError;
use crate::filter::query;
use crate::model::Image;
use crate::output::{Format, ListArgs, json_lines, print, short_id};
use crate::units::human_size;
use crate::{table, time};

/// Flags of `image ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    list: ListArgs,
}

/// One line, under Docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    created_since: String,
    #[serde(rename = "ID")]
    id: String,
    repository: String,
    size: String,
    tag: String,
}

/// Lists the images of this node.
pub(crate) async fn run(client: &Client, args: LsArgs) -> Result<(), CliError> {
    let images: Vec<Image> = client.get(&format!("/images/json?{}", query(&args.list.filter))).await?;
    print(&render(images, &args.list, time::now_nanos())?)
}

fn render(mut images: Vec<Image>, args: &ListArgs, now: i128) -> Result<String, CliError> {
    images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.repo_tags.cmp(&b.repo_tags)));
    let id_of = |image: &Image| if args.no_trunc { image.id.clone() } else { short_id(&image.id).to_owned() };
    if args.quiet {
        return Ok(images.iter().map(|image| id_of(image) + "\n").collect());
    }
    let mut rows = Vec::new();
    for image in &images {
        let untagged = vec!["<none>:<none>".to_owned()];
        for reference in if image.repo_tags.is_empty() { &untagged } else { &image.repo_tags } {
            let (repository, tag) = reference.rsplit_once(':').unwrap_or((reference, "<none>"));
            let age = now - i128::from(image.created) * time::SECOND_NANOS;
            rows.push(Row {
                created_since: format!("{} ago", time::human_duration(age)),
                id: id_of(image),
                repository: repository.to_owned(),
                size: human_size(image.size),
                tag: tag.to_owned(),
            });
        }
    }
    if args.format == Format::Json {
        return json_lines(&rows);
    }
    let cells: Vec<[String; 5]> =
        rows.into_iter().map(|row| [row.repository, row.tag, row.id, row.created_since, row.size]).collect();
    Ok(table::render(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], &cells))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn images_are_listed_as_docker_lists_them() {
        let images: Vec<Image> = serde_json::from_value(json!([{"Containers": -1, "Created": 1_795_397_304,
            "Id": "sha256:6ded1c4b78b0807eeafc0ac0b7a6b1ba5bdcbb51d4a01117bf63e41a7093550e", "RepoDigests": null,
            "RepoTags": ["lab/web:1"], "Size": 2_697_900}]))
        .unwrap();
        let args = ListArgs { quiet: false, no_trunc: false, filter: Vec::new(), format: Format::Table };
        let text = render(images, &args, 1_795_404_504 * time::SECOND_NANOS).unwrap();
        let want = [
            "REPOSITORY   TAG       IMAGE ID       CREATED       SIZE",
            "lab/web      1         6ded1c4b78b0   2 hours ago   2.7MB",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
    }
}
