//! `scripts/demo`: the walk before the user's eyes, on 127.0.0.1 to 127.0.0.3.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use shoal_tests::lab::{Driver, Guard, Lab, LabConfig, Layout};
use shoal_tests::walk;

/// Three shoal nodes on this machine, from nothing to a service that outlives its node
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Args {
    /// Where to keep the nodes' data
    #[arg(long)]
    dir: PathBuf,
    /// Archive of the demo image
    #[arg(long)]
    image: PathBuf,
    /// What runs the containers
    #[arg(long, value_enum, default_value_t = Driver::Embedded)]
    driver: Driver,
    /// The engine for the docker driver
    #[arg(long, env = "DOCKER_HOST", default_value = "unix:///var/run/docker.sock")]
    docker_host: String,
    /// Leave the nodes running at the end
    #[arg(long)]
    keep: bool,
    /// Only remove what an earlier run left in DIR
    #[arg(long)]
    down: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.down {
        return if args.dir.join("lab.json").exists() { Lab::open(&args.dir)?.down() } else { Ok(()) };
    }
    let start = Instant::now();
    ensure!(args.image.is_file(), "there is no image at {}", args.image.display());
    let mut config = LabConfig::new(&args.dir, 3, args.driver)?;
    config.layout = Layout::Loopback;
    config.bare = true;
    config.docker_host = (args.driver == Driver::Docker).then(|| args.docker_host.clone());
    let lab = Guard(Lab::create(config)?);
    let result = walk::walk(&lab, &args.image);
    if result.is_err() {
        lab.print_logs();
    } else {
        println!("\nAll as promised, in {:.0} s.", start.elapsed().as_secs_f64());
    }
    if args.keep {
        println!("The nodes stay. For example: shoal -H unix://{} service ls", lab.node(1).socket().display());
        println!("Remove them: scripts/demo --down");
        std::mem::forget(lab);
    }
    result
}
