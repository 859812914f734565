//! The page for browsers, in a real browser, in front of a daemon that dies.

use anyhow::{Context, Result, ensure};
use shoal_tests::browser::Browser;
use shoal_tests::lab::{IMAGE, Lab};

use crate::{START_WAIT, WAIT, check, formed, serve};

const URL: &str = "http://127.0.0.1:2375/";

/// Widths of a telephone, a tablet and a desk's screen, with heights.
const SIZES: [(u32, u32); 3] = [(390, 844), (820, 1180), (1280, 900)];

#[test]
fn a_browser_shows_the_cluster_as_it_changes() -> Result<()> {
    let cluster = formed(2)?;
    check(&cluster, look(&cluster))
}

fn look(lab: &Lab) -> Result<()> {
    serve(lab, 2)?;
    let host = ["--host".to_owned(), "tcp://127.0.0.1:2375".to_owned()];
    let node = lab.node(1);
    node.stop()?;
    node.start_with(&host)?;
    node.wait_answers(START_WAIT)?;
    let directory = tempfile::tempdir()?;
    let browser = Browser::start(node.namespace().as_deref(), directory.path())?;
    browser.open(URL)?;
    browser.wait("the service runs", WAIT, |text| text.contains("http") && text.contains("2 of 2"))?;
    browser.run("window.first = true")?;

    let shoal = lab.node(2).shoal();
    let markup = "<img src=x onerror=document.title=1>";
    shoal.ok(&["node", "update", "--label-add", &format!("zone={markup}"), "n2"])?;
    shoal.ok(&["service", "create", "--detach", "--name", "unplaced", "--constraint", "node.labels.a==b", IMAGE])?;
    shoal.ok(&["service", "scale", "http=3"])?;
    browser.wait("the change is shown", WAIT, |text| {
        text.contains("3 of 3") && text.contains(markup) && text.contains("no suitable node")
    })?;
    ensure!(browser.run("return window.first")? == true, "the page was loaded again to show a change");
    ensure!(browser.run("return document.images.length")? == 0, "a label became markup");

    for (width, height) in SIZES {
        browser.resize(width, height)?;
        let seen = browser.run("return [document.documentElement.scrollWidth, window.innerWidth]")?;
        let pixels = |index: usize| seen[index].as_u64().context("no width");
        ensure!(pixels(0)? <= pixels(1)?, "on a screen of {width} pixels the page is {seen} wide");
        ensure!(pixels(1)? == u64::from(width), "the screen is {seen} wide");
        evidence(&browser, &format!("page-{width}"))?;
    }
    let elsewhere = "return performance.getEntriesByType('resource').map(entry => entry.name)\
                     .filter(name => !name.startsWith(location.origin))";
    ensure!(browser.run(elsewhere)? == serde_json::json!([]), "something was loaded from elsewhere");

    node.kill_daemon()?;
    browser.wait("the silence is told", WAIT, |text| text.contains("No answer from this node since"))?;
    ensure!(browser.text()?.contains("http"), "what was known is gone");
    evidence(&browser, "page-silent")?;
    node.start_with(&host)?;
    browser.wait("it goes on", WAIT, |text| !text.contains("No answer") && text.contains("3 of 3"))
}

/// Keeps a picture in the directory that `SHOAL_PICTURES` names, for people to look at.
fn evidence(browser: &Browser, name: &str) -> Result<()> {
    let picture = browser.picture()?;
    ensure!(picture.starts_with(b"\x89PNG"), "the browser drew no picture");
    if let Some(directory) = std::env::var_os("SHOAL_PICTURES") {
        std::fs::write(std::path::Path::new(&directory).join(format!("{name}.png")), picture)?;
    }
    Ok(())
}
