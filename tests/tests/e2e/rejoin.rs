//! Clusters that find themselves again though everybody was killed, the seed never comes back and addresses have changed.

use std::time::Duration;

use anyhow::{Result, ensure};
use shoal_tests::lab::{Driver, Guard, IMAGE, Lab, LabConfig, Layout, PORT};
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

const START_WAIT: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(60);

/// Forms a cluster of managers, lets them forget nothing but their processes, and starts all but the first on new ports.
fn find_each_other_again(nodes: usize, layout: Layout, port: impl Fn(usize) -> u16) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "these tests make network namespaces: run them as root");
    let dir = tempfile::Builder::new().prefix("shoal-rejoin").tempdir()?;
    let mut config = LabConfig::new(dir.path().join("lab"), nodes, Driver::Embedded)?;
    config.managers = nodes;
    config.layout = layout;
    let lab = Guard(Lab::create(config)?);
    let result = found_again(&lab, port);
    if result.is_err() {
        lab.print_logs();
    }
    result
}

fn found_again(lab: &Lab, port: impl Fn(usize) -> u16) -> Result<()> {
    lab.form()?;
    let voters =
        |lab: &Lab| -> Result<usize> { Ok(lab.node(2).shoal().status()?["Voters"].as_array().map_or(0, Vec::len)) };
    wait_until("all managers vote", WAIT, || Ok(voters(lab)? == lab.config.nodes))?;
    lab.node(1).shoal().ok(&["service", "create", "--detach", "--name", "before", "--replicas", "0", IMAGE])?;
    let everywhere = |name: &str| {
        let name = name.to_owned();
        move || {
            for node in lab.running() {
                let rows = node.shoal().json(&["service", "ls"])?;
                if !rows.iter().any(|row| text(row, "Name") == name) {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    };
    wait_until("the service is known to all", WAIT, everywhere("before"))?;

    // A voter that was just named takes over from the old ones before it counts: until then nobody can do without the seed.
    wait_until("every voter has caught up", WAIT, || {
        Ok(lab.nodes().all(|node| node.shoal().run(&["status"]).is_ok_and(|output| output.code == 0)))
    })?;
    let mut name = "x".to_owned();
    lab.nodes().try_for_each(|node| node.kill_daemon())?;
    lab.nodes().skip(1).try_for_each(|node| node.start_on(port(node.index)))?;
    lab.nodes().skip(1).try_for_each(|node| node.wait_answers(START_WAIT))?;
    let took = wait_until("all but the seed see each other", WAIT, || lab.all_ready())?;
    println!("found each other after {:.2} s", took.as_secs_f64());

    wait_until("there is a quorum", WAIT, || {
        Ok(lab.running().all(|node| node.shoal().status().is_ok_and(|status| status["Quorum"] == true)))
    })?;
    wait_until("a write is accepted", WAIT, || {
        // Another name each time: one that was refused may yet have been carried out.
        name.push('x');
        create(lab, &name)
    })?;
    for name in ["before", &name] {
        wait_until("the services are known to all", WAIT, everywhere(name))?;
    }
    Ok(())
}

/// Returns whether node 2 accepted a new service.
fn create(lab: &Lab, name: &str) -> Result<bool> {
    let args = ["service", "create", "--detach", "--name", name, "--replicas", "0", IMAGE];
    Ok(lab.node(2).shoal().run_within(&args, START_WAIT)?.code == 0)
}

#[test]
fn half_of_them_on_other_ports() -> Result<()> {
    find_each_other_again(5, Layout::Namespaces, |index| if index % 2 == 0 { PORT } else { 3000 })
}

/// No remembered address is true any more and the name of the seed leads nowhere: only the local link is left.
#[test]
fn all_of_them_on_other_ports() -> Result<()> {
    find_each_other_again(5, Layout::Namespaces, |index| u16::try_from(3000 + index).unwrap_or(PORT))
}

#[test]
fn all_of_them_on_other_ports_of_one_machine() -> Result<()> {
    find_each_other_again(3, Layout::Loopback, |index| u16::try_from(3000 + index).unwrap_or(PORT))
}
