//! `shoal image ls`.

use serde::Serialize;

use crate::client::Client;
use crate::error::CliError;
use crate::filter::query;
use crate::model::Image;
use crate::output::{ListArgs, Listing, print, short_id};
use crate::time;
use crate::units::human_size;

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
    /// Docker counts them only for `system df`.
    containers: &'static str,
    created_at: String,
    created_since: String,
    digest: String,
    #[serde(rename = "ID")]
    id: String,
    repository: String,
    shared_size: &'static str,
    size: String,
    tag: String,
    unique_size: &'static str,
}

const LISTING: Listing = Listing {
    table: r"{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    headings: &[
        ("ID", "IMAGE ID"),
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("Containers", "CONTAINERS"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
    ],
};

/// What a field says that is not known.
const NOT_KNOWN: &str = "N/A";

/// Lists the images of this node.
pub(crate) async fn run(client: &Client, args: LsArgs) -> Result<(), CliError> {
    let images: Vec<Image> = client.get(&format!("/images/json?{}", query(&args.list.filter))).await?;
    print(&render(images, &args.list, time::now_nanos())?)
}

fn render(mut images: Vec<Image>, args: &ListArgs, now: i128) -> Result<String, CliError> {
    images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.repo_tags.cmp(&b.repo_tags)));
    let id_of = |image: &Image| if args.no_trunc { image.id.clone() } else { short_id(&image.id).to_owned() };
    if args.is_quiet() {
        return Ok(images.iter().map(|image| id_of(image) + "\n").collect());
    }
    let mut rows = Vec::new();
    for image in &images {
        let untagged = vec!["<none>:<none>".to_owned()];
        for reference in if image.repo_tags.is_empty() { &untagged } else { &image.repo_tags } {
            let (repository, tag) = reference.rsplit_once(':').unwrap_or((reference, "<none>"));
            let age = now - i128::from(image.created) * time::SECOND_NANOS;
            let digest =
                image.repo_digests.iter().find_map(|digest| digest.strip_prefix(repository)?.strip_prefix('@'));
            rows.push(Row {
                containers: NOT_KNOWN,
                created_at: time::utc(image.created),
                digest: digest.unwrap_or("<none>").to_owned(),
                shared_size: NOT_KNOWN,
                unique_size: NOT_KNOWN,
                created_since: format!("{} ago", time::human_duration(age)),
                id: id_of(image),
                repository: repository.to_owned(),
                size: human_size(image.size),
                tag: tag.to_owned(),
            });
        }
    }
    LISTING.render(&rows, &args.format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    #[test]
    fn images_are_listed_as_docker_lists_them() {
        let images: Vec<Image> = serde_json::from_value(json!([{"Containers": -1, "Created": 1_795_397_304,
            "Id": "sha256:6ded1c4b78b0807eeafc0ac0b7a6b1ba5bdcbb51d4a01117bf63e41a7093550e", "RepoDigests": null,
            "RepoTags": ["lab/web:1"], "Size": 2_697_900}]))
        .unwrap();
        let args = ListArgs { quiet: false, no_trunc: false, filter: Vec::new(), format: "table".to_owned() };
        let now = 1_795_404_504 * time::SECOND_NANOS;
        let text = render(images.clone(), &args, now).unwrap();
        snapshot::check("output/image-ls.txt", &text);
        let json =
            render(images.clone(), &ListArgs { format: "json".to_owned(), filter: Vec::new(), ..args }, now).unwrap();
        snapshot::check("output/image-ls.json", &json);
        let want = [
            "REPOSITORY   TAG       IMAGE ID       CREATED       SIZE",
            "lab/web      1         6ded1c4b78b0   2 hours ago   2.7MB",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
        let args = ListArgs { format: "{{.CreatedAt}} {{.Digest}} {{.Containers}}".to_owned(), ..args };
        assert_eq!(render(images, &args, now).unwrap(), "2026-11-23 01:28:24 +0000 UTC <none> N/A\n");
    }
}
