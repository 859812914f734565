//! `shoal secret ls` and `shoal config ls`.

use serde::Serialize;
use shoal_protocol::Kind;

use super::path;
use crate::client::Client;
use crate::error::CliError;
use crate::filter::query;
use crate::model::FileObject;
use crate::output::{ListArgs, Listing, print};
use crate::time;

/// Flags of `secret ls` and `config ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    list: ListArgs,
}

/// One line, under Docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    created_at: String,
    /// Of secrets alone, and there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(rename = "ID")]
    id: String,
    labels: String,
    name: String,
    updated_at: String,
}

const SECRETS: Listing = Listing {
    table: r"{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
    ],
};

const CONFIGS: Listing = Listing {
    table: r"{{.ID}}\t{{.Name}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
    ],
};

/// Lists secrets or configs.
pub(crate) async fn run(client: &Client, kind: Kind, args: LsArgs) -> Result<(), CliError> {
    let found = client.get(&path(kind, &format!("?{}", query(&args.list.filter)))).await?;
    print(&render(kind, found, &args.list, time::now_nanos())?)
}

fn render(kind: Kind, mut found: Vec<FileObject>, args: &ListArgs, now: i128) -> Result<String, CliError> {
    found.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    if args.is_quiet() {
        return Ok(found.into_iter().map(|object| object.id + "\n").collect());
    }
    let age = |moment: &str| {
        time::parse_rfc3339(moment).map_or_else(String::new, |then| format!("{} ago", time::human_duration(now - then)))
    };
    let rows: Vec<Row> = found
        .into_iter()
        .map(|object| Row {
            created_at: age(&object.created_at),
            driver: (kind == Kind::Secret).then(String::new),
            id: object.id,
            labels: object
                .spec
                .labels
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
                .join(","),
            name: object.spec.name,
            updated_at: age(&object.updated_at),
        })
        .collect();
    let listing = if kind == Kind::Secret { SECRETS } else { CONFIGS };
    listing.render(&rows, &args.format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    #[test]
    fn objects_are_listed_as_docker_lists_them() {
        let object = |id: &str, name: &str| {
            json!({"ID": id, "Version": {"Index": 65}, "CreatedAt": "2026-11-23T01:52:31.81773924Z",
                "UpdatedAt": "2026-11-23T01:53:31.81773924Z", "Spec": {"Name": name, "Labels": {"a": "b", "c": ""}}})
        };
        let found = || -> Vec<FileObject> {
            let found =
                json!([object("qc5aytydzugjrj935k5um9vgk", "sec2"), object("hlug4mefg0u3ax933k7n90xwv", "sec1")]);
            serde_json::from_value(found).unwrap()
        };
        let args = ListArgs { quiet: false, no_trunc: false, filter: Vec::new(), format: "table".to_owned() };
        let now = time::parse_rfc3339("2026-11-23T01:53:31.9Z").unwrap();
        let text = render(Kind::Secret, found(), &args, now).unwrap();
        snapshot::check("output/secret-ls.txt", &text);
        let want = [
            "ID                          NAME      DRIVER    CREATED              UPDATED",
            "hlug4mefg0u3ax933k7n90xwv   sec1                About a minute ago   Less than a second ago",
            "qc5aytydzugjrj935k5um9vgk   sec2                About a minute ago   Less than a second ago",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
        snapshot::check("output/config-ls.txt", &render(Kind::Config, found(), &args, now).unwrap());
        let json = ListArgs { format: "json".to_owned(), ..args };
        snapshot::check("output/secret-ls.json", &render(Kind::Secret, found(), &json, now).unwrap());
        let labels = ListArgs { format: "{{.Name}} {{.Labels}}".to_owned(), ..json };
        assert_eq!(render(Kind::Config, found(), &labels, now).unwrap(), "sec1 a=b,c=\nsec2 a=b,c=\n");
        let quiet = ListArgs { quiet: true, format: "table".to_owned(), ..labels };
        assert_eq!(
            render(Kind::Config, found(), &quiet, now).unwrap(),
            "hlug4mefg0u3ax933k7n90xwv\nqc5aytydzugjrj935k5um9vgk\n"
        );
    }
}
