//! `scripts/lab`: real nodes on one machine, with faults at hand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use shoal_tests::lab::{Driver, Lab, LabConfig};

/// How long a daemon may take until it answers.
const START_WAIT: Duration = Duration::from_secs(30);

/// Real shoal nodes on one machine: node I lives in network namespace shoal-I at 10.78.0.I
#[derive(Debug, Parser)]
#[command(name = "lab")]
struct Args {
    /// Where the laboratory is kept: node I has its socket at DIR/nI/shoal.sock and its data at DIR/nI/data
    #[arg(long, global = true, env = "SHOAL_LAB_DIR", default_value_os_t = std::env::temp_dir().join("shoal-lab"))]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start N nodes as one cluster, with the demo image on each
    Up {
        /// Nodes
        n: usize,
        /// Nodes that are managers, the first ones (default: 3, or all if fewer)
        #[arg(long)]
        managers: Option<usize>,
        /// What runs the containers
        #[arg(long, value_enum, default_value_t = Driver::Embedded)]
        driver: Driver,
        /// Start daemons that wait to be told to make or join a cluster
        #[arg(long)]
        bare: bool,
    },
    /// Kill everything and remove every trace
    Down,
    /// Kill daemon, tasks and engine of a node at once, as a power failure does
    Crash {
        /// Node
        i: usize,
    },
    /// Kill the daemon of a node alone
    Kill {
        /// Node
        i: usize,
    },
    /// Ask the daemon of a node to end (SIGTERM)
    Stop {
        /// Node
        i: usize,
    },
    /// Start the daemon of a node, and its engine, and wait until it answers
    Start {
        /// Node
        i: usize,
    },
    /// Pull the cable of a node; several nodes move to a second switch, where they see each other
    Cut {
        /// Nodes
        #[arg(required = true)]
        i: Vec<usize>,
    },
    /// Plug the cables of nodes in again, or of all
    Heal {
        /// Nodes
        i: Vec<usize>,
    },
    /// Pause the daemon of a node (SIGSTOP)
    Pause {
        /// Node
        i: usize,
    },
    /// Let a paused daemon run on (SIGCONT)
    Resume {
        /// Node
        i: usize,
    },
    /// Run a command in the network namespace of a node
    Exec {
        /// Node
        i: usize,
        /// Command with its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run the command line client against a node
    Shoal {
        /// Node
        i: usize,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Up { n, managers, driver, bare } => {
            let mut config = LabConfig::new(&args.dir, n, driver)?;
            config.managers = managers.unwrap_or(config.managers);
            config.bare = bare;
            up(Lab::create(config)?)?;
        }
        Command::Down => {
            if args.dir.join("lab.json").exists() {
                Lab::open(&args.dir)?.down()?;
            }
        }
        Command::Crash { i } => drop(node_of(&args.dir, i)?.node(i).crash()?),
        Command::Kill { i } => node_of(&args.dir, i)?.node(i).kill_daemon()?,
        Command::Stop { i } => node_of(&args.dir, i)?.node(i).stop()?,
        Command::Start { i } => drop(node_of(&args.dir, i)?.node(i).start_and_wait(START_WAIT)?),
        Command::Cut { i } => Lab::open(&args.dir)?.cut(&i)?,
        Command::Heal { i } => Lab::open(&args.dir)?.heal(&i)?,
        Command::Pause { i } => node_of(&args.dir, i)?.node(i).pause()?,
        Command::Resume { i } => node_of(&args.dir, i)?.node(i).resume()?,
        Command::Exec { i, command } => {
            let (program, arguments) = command.split_first().expect("clap requires one");
            return Err(node_of(&args.dir, i)?.node(i).exec(program, arguments));
        }
        Command::Shoal { i, arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = node_of(&args.dir, i)?.node(i).shoal().run(&arguments)?;
            print!("{}", output.stdout);
            eprint!("{}", output.stderr);
            return Ok(ExitCode::from(u8::try_from(output.code).unwrap_or(1)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the daemons of a new laboratory; what cannot be started is taken down again.
fn up(lab: Lab) -> Result<()> {
    let started = if lab.config.bare {
        lab.nodes().try_for_each(|node| node.start_and_wait(START_WAIT).map(|_| ()))
    } else {
        lab.form().and_then(|()| lab.load_image())
    };
    if let Err(error) = started {
        lab.print_logs();
        lab.down()?;
        return Err(error);
    }
    for node in lab.nodes() {
        println!("n{} {} {}", node.index, node.address(), node.socket().display());
    }
    Ok(())
}

fn node_of(dir: &std::path::Path, index: usize) -> Result<Lab> {
    let lab = Lab::open(dir)?;
    anyhow::ensure!((1..=lab.config.nodes).contains(&index), "there are nodes 1 to {}", lab.config.nodes);
    Ok(lab)
}
