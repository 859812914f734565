//! Daemons that stand still for a while.

use std::time::Duration;

use anyhow::{Result, ensure};
use shoal_tests::lab::{Driver, Lab};
use shoal_tests::wait::wait_until;

use crate::{WAIT, check, cluster, serve, wait_well};

#[test]
fn a_worker_answers_alone() -> Result<()> {
    let cluster = cluster(4, Driver::Embedded, |config| config.managers = 3)?;
    cluster.form()?;
    cluster.load_image()?;
    check(&cluster, worker_answers(&cluster))
}

fn worker_answers(lab: &Lab) -> Result<()> {
    serve(lab, 4)?;
    (1..=3).try_for_each(|index| lab.node(index).pause())?;
    for args in [&["service", "ls"][..], &["service", "ps", "http"], &["node", "ls"]] {
        let output = lab.node(4).shoal().run_within(args, Duration::from_secs(5))?;
        println!("{args:?}: {:?}", output.took);
        ensure!(output.code == 0, "{args:?}: {}", output.stderr);
        ensure!(output.took < Duration::from_millis(500), "{args:?} took {:?}", output.took);
    }
    let output = lab.node(4).shoal().run(&["service", "scale", "--detach", "http=5"])?;
    ensure!(output.code == 1, "a worker accepted a write");
    ensure!(output.stderr.contains("10.78.0."), "a worker refused a write without naming a manager: {}", output.stderr);
    (1..=3).try_for_each(|index| lab.node(index).resume())?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 4, &[])
}
