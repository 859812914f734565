//! A real browser, driven by WebDriver: Debian's `chromium` and `chromium-driver`. Source: W3C WebDriver, level 2.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::http;
use crate::shoal::text;
use crate::wait::wait_until;

/// How long the browser may take to start, and for anything that it is told.
const START_WAIT: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(30);

/// A browser without a window, in some network namespace. It ends when this is dropped.
pub struct Browser {
    namespace: Option<PathBuf>,
    driver: Child,
    address: SocketAddr,
    session: String,
}

impl Browser {
    /// Starts a browser that keeps everything below `directory`.
    pub fn start(namespace: Option<&Path>, directory: &Path) -> Result<Self> {
        let mut command = match namespace {
            Some(path) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", path.display())).args(["--", "chromedriver"]);
                command
            }
            None => Command::new("chromedriver"),
        };
        command.arg("--port=0").env("TMPDIR", directory).env("HOME", directory);
        // All of the browser is in the driver's process group, so that nothing of it stays.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().context("run chromedriver: install Debian's chromium-driver")?;
        let stdout = driver.stdout.take().context("no stdout")?;
        let mut browser = Self {
            namespace: namespace.map(Path::to_path_buf),
            driver,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port(stdout)?)),
            session: String::new(),
        };
        let profile = format!("--user-data-dir={}", directory.join("profile").display());
        let flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", &profile];
        let options = json!({"browserName": "chrome", "goog:chromeOptions": {"args": flags}});
        let answer =
            browser.send("POST", "/session", &json!({"capabilities": {"alwaysMatch": options}}), START_WAIT)?;
        browser.session = format!("/session/{}", text(&answer, "sessionId"));
        Ok(browser)
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        self.tell("/url", &json!({"url": url})).map(drop)
    }

    /// Makes what the page is shown in so many pixels wide and high.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", &size).map(drop)
    }

    /// Runs the body of a function in the page, and returns what that returns.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.tell("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Returns what a reader sees, as text.
    pub fn text(&self) -> Result<String> {
        Ok(self.run("return document.body.innerText")?.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a reader sees what is wanted.
    pub fn wait(&self, what: &str, limit: Duration, is_so: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(what, limit, || {
            let text = self.text()?;
            if is_so(&text) { Ok(true) } else { bail!("the page shows\n{text}") }
        })
        .map(drop)
    }

    /// Returns a picture of what is in sight, in PNG.
    pub fn picture(&self) -> Result<Vec<u8>> {
        let data = self.devtools("Page.captureScreenshot", &json!({"format": "png"}))?;
        STANDARD.decode(text(&data, "data")).context("the picture is not base64")
    }

    fn devtools(&self, method: &str, params: &Value) -> Result<Value> {
        self.tell("/goog/cdp/execute", &json!({"cmd": method, "params": params}))
    }

    fn tell(&self, path: &str, body: &Value) -> Result<Value> {
        self.send("POST", &format!("{}{path}", self.session), body, LIMIT)
    }

    fn send(&self, method: &str, path: &str, body: &Value, limit: Duration) -> Result<Value> {
        let answer = http::in_namespace(self.namespace.as_deref(), || {
            http::request(self.address, method, path, &body.to_string(), limit)
        })
        .with_context(|| format!("browser: {method} {path}"))?;
        let mut said: Value = serde_json::from_slice(&answer.body).context("the browser's driver speaks no JSON")?;
        ensure!(answer.status == 200, "browser: {method} {path}: {}", text(&said["value"], "message"));
        Ok(said["value"].take())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.send("DELETE", &self.session, &Value::Null, LIMIT);
        if let Some(group) = i32::try_from(self.driver.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.driver.wait();
    }
}

/// Returns the port that a driver says it listens on.
fn port(stdout: impl std::io::Read + Send + 'static) -> Result<u16> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let port = line.strip_prefix("ChromeDriver was started successfully on port ");
            if let Some(port) = port.and_then(|port| port.trim_end_matches('.').parse::<u16>().ok()) {
                // Nobody listens any more if the limit is over.
                let _ = tell.send(port);
            }
        }
    });
    told.recv_timeout(START_WAIT).context("chromedriver does not say that it has started")
}
