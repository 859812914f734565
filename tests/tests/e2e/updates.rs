//! Updates that go wrong.

use anyhow::{Result, ensure};
use shoal_tests::lab::{IMAGE, Lab};
use shoal_tests::shoal::text;

use crate::{WAIT, check, formed, serve, wait_well};

#[test]
fn a_failed_update_is_rolled_back() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, rolled_back(&cluster))
}

fn rolled_back(lab: &Lab) -> Result<()> {
    serve(lab, 3)?;
    let quick = ["--update-monitor", "1s", "--rollback-monitor", "1s", "--rollback-parallelism", "0"];
    let args =
        [&["service", "update", "--image", "missing:1", "--update-failure-action", "rollback"], &quick[..]].concat();
    let output = lab.node(2).shoal().run_within(&[&args[..], &["http"]].concat(), WAIT)?;
    ensure!(output.code == 1, "an update without an image ended with {}: {}", output.code, output.stderr);
    ensure!(output.stderr.contains("service rolled back: update rolled back due to failure"), "{}", output.stderr);
    let state = lab.node(3).shoal().ok(&["service", "inspect", "--format", "{{.UpdateStatus.State}}", "http"])?;
    ensure!(state.trim() == "rollback_completed", "{state}");
    wait_well(lab, 3, &[])?;
    let rows = lab.node(1).shoal().json(&["service", "ps", "http", "--filter", "desired-state=running"])?;
    let images: Vec<&str> = rows.iter().map(|row| text(row, "Image")).collect();
    ensure!(images == [IMAGE; 3], "{images:?}");
    // The spec that failed is the previous one now.
    let output = lab.node(1).shoal().run_within(&["service", "rollback", "http"], WAIT)?;
    ensure!(
        output.code == 1 && output.stderr.contains("rollback paused"),
        "the image is still missing: {}",
        output.stderr
    );
    Ok(())
}
