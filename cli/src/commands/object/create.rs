//! `shoal secret create` and `shoal config create`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use shoal_protocol::Kind;
use shoal_protocol::object::{DATA_BYTES_LIMIT, check_data};

use super::path;
use crate::client::Client;
use crate::error::CliError;
use crate::model::Created;
use crate::output::print;
use crate::spec::change_labels;

/// Flags of `secret create` and `config create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Labels
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Template driver
    #[arg(long, value_name = "NAME")]
    template_driver: Option<String>,
    /// Its name
    name: String,
    /// File to read ('-' is STDIN)
    file: PathBuf,
}

/// Creates a secret or config and prints its identifier.
pub(crate) async fn run(client: &Client, kind: Kind, args: CreateArgs) -> Result<(), CliError> {
    let data = read(kind, &args.file)?;
    let mut spec: Value = json!({"Name": args.name, "Labels": {}, "Data": STANDARD.encode(data)});
    if let Some(driver) = args.template_driver.filter(|driver| !driver.is_empty()) {
        spec["Templating"] = json!({"Name": driver});
    }
    change_labels(&mut spec, &["Labels"], &[], &args.label);
    let created: Created = client.post(&path(kind, "/create"), &spec).await?;
    print(&format!("{}\n", created.id))
}

/// Reads the data, of which too much is refused before all of it is read.
fn read(kind: Kind, path: &Path) -> Result<Vec<u8>, CliError> {
    let failed =
        |error: io::Error| CliError::Failed(format!("error reading content from \"{}\": {error}", path.display()));
    let mut data = Vec::new();
    let limit = DATA_BYTES_LIMIT as u64 + 1;
    let read = match path.as_os_str() == "-" {
        true => io::stdin().lock().take(limit).read_to_end(&mut data),
        false => File::open(path).map_err(failed)?.take(limit).read_to_end(&mut data),
    };
    read.map_err(failed)?;
    check_data(kind, data.len()).map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn data_are_read_within_their_limit() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("data");
        for (bytes, fits) in [(0, false), (1, true), (DATA_BYTES_LIMIT - 1, true), (DATA_BYTES_LIMIT, false)] {
            fs::write(&place, vec![7; bytes]).unwrap();
            assert_eq!(read(Kind::Config, &place).map(|data| data.len()).ok(), fits.then_some(bytes));
        }
        let endless = read(Kind::Secret, Path::new("/dev/zero")).unwrap_err();
        assert_eq!(endless.to_string(), "secret data must be larger than 0 and less than 512000 bytes");
        let missing = read(Kind::Secret, &directory.path().join("no")).unwrap_err();
        assert!(missing.to_string().starts_with("error reading content from"), "{missing}");
    }
}
