//! What it costs a daemon that people look at 20 nodes and 200 tasks with `shoal top` and with the page; and pictures of both.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use shoal_tests::browser::Browser;
use shoal_tests::lab::{Guard, IMAGE, Lab, LabConfig};
use shoal_tests::terminal::Terminal;
use shoal_tests::wait::wait_until;

use super::idle::{Cost, SETTLE};
use super::{LabArgs, Printer};

const NODES: usize = 20;

/// Services and tasks of each: 200 together.
const SERVICES: [(&str, &str); 4] = [("web", "80"), ("api", "60"), ("worker", "40"), ("cache", "20")];

const URL: &str = "http://127.0.0.1:2375/";

const WINDOW: Duration = Duration::from_secs(30);

/// How long everything may take to run, and something to be shown.
const WAIT: Duration = Duration::from_secs(180);

/// Measures the daemon of one node while nobody looks, while one looks at `top`, and while one looks at the page.
pub(crate) fn watch(printer: &Printer, args: &LabArgs, pictures: Option<&Path>) -> Result<()> {
    let lab = Guard(Lab::create(LabConfig::new(&args.dir, NODES, args.driver)?)?);
    lab.form()?;
    lab.load_image()?;
    let node = lab.node(1);
    node.stop()?;
    node.start_with(&["--host".to_owned(), "tcp://127.0.0.1:2375".to_owned()])?;
    node.wait_answers(WAIT)?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    for (index, (name, replicas)) in SERVICES.into_iter().enumerate() {
        let port = format!("{}:80", 8080 + index);
        let create = ["service", "create", "--detach", "--name", name, "--replicas", replicas, "-p", &port, IMAGE];
        node.shoal().ok(&create)?;
    }
    wait_until("all tasks run", WAIT, || Ok(lab.nodes().map(|node| node.tasks().len()).sum::<usize>() == NODES * 10))?;
    let measure = |name: &str| -> Result<()> {
        std::thread::sleep(SETTLE);
        Cost::of_each(&[node], WINDOW)?.print(printer, name);
        Ok(())
    };
    measure("watch-nobody")?;
    let directory = args.dir.join("browser");
    fs::create_dir_all(&directory)?;
    {
        let shoal = node.shoal();
        let mut command = Command::new(&shoal.binary);
        command.arg("-H").arg(format!("unix://{}", shoal.socket.display())).arg("top");
        let mut top = Terminal::run(&command, 120, 36)?;
        top.wait("the services are shown", WAIT, |text| text.contains("80/80"))?;
        measure("watch-top")?;
        if let Some(pictures) = pictures {
            let browser = Browser::start(None, &directory)?;
            let screens = [("1", "n20"), ("2", "web"), ("3", "api.1")];
            for ((key, shown), name) in screens.into_iter().zip(["top-nodes", "top-services", "top-tasks"]) {
                top.press(key)?;
                top.wait("it is shown", WAIT, |text| text.contains(shown))?;
                let page = directory.join(format!("{name}.html"));
                fs::write(&page, top.html())?;
                browser.resize(1040, 660)?;
                browser.open(&format!("file://{}", page.display()))?;
                keep(pictures, name, &browser)?;
            }
        }
    }
    let browser = Browser::start(node.namespace().as_deref(), &directory)?;
    browser.resize(1280, 900)?;
    browser.open(URL)?;
    browser.wait("the services are shown", WAIT, |text| text.contains("80 of 80"))?;
    measure("watch-page")?;
    if let Some(pictures) = pictures {
        for (width, height, name) in [(1280, 900, "page"), (390, 844, "page-phone")] {
            browser.resize(width, height)?;
            keep(pictures, name, &browser)?;
        }
    }
    Ok(())
}

fn keep(pictures: &Path, name: &str, browser: &Browser) -> Result<()> {
    let path = pictures.join(format!("{name}.png"));
    fs::write(&path, browser.picture()?).with_context(|| path.display().to_string())
}
