//! The settings of a container that only show inside it: groups, names, kernel parameters, capabilities, limits, init process,
//! terminal, log driver.

use anyhow::{Context, bail, ensure};
use shoal_protocol::spec::LogDriver;
use shoal_protocol::spec::settings::{Dns, Ulimit};

use super::{LogQuery, LogStream, Suite, text, within};
use crate::driver::DriverError;

const LOOK: &str = "id -G; cat /etc/hosts /etc/resolv.conf /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax \
                    /proc/self/oom_score_adj; grep Cap /proc/self/status; ulimit -Sn; ulimit -Hn";

/// Capabilities as bits of their numbers. Source: capabilities(7).
const CHOWN: u64 = 1;
const NET_ADMIN: u64 = 1 << 12;

impl Suite<'_> {
    pub(super) async fn further_settings(&self) -> anyhow::Result<()> {
        let mut plan = self.plan(LOOK);
        let settings = &mut plan.settings;
        settings.groups = vec!["1234".to_owned()];
        settings.hosts = vec!["10.1.2.3 other alias".to_owned()];
        settings.dns = Dns {
            nameservers: vec!["10.9.9.9".to_owned()],
            search: vec!["example.test".to_owned()],
            options: vec!["ndots:3".to_owned()],
        };
        settings.sysctls = [("net.core.somaxconn", "77"), ("kernel.msgmax", "4321")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        settings.capability_add = vec!["CAP_NET_ADMIN".to_owned()];
        settings.capability_drop = vec!["CAP_CHOWN".to_owned()];
        settings.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 100, hard: 200 }];
        settings.oom_score_adj = 7;
        let lines = self.run_to_end(&plan).await?;
        let has = |want: &str| lines.iter().any(|line| line.split_whitespace().eq(want.split(' ')));
        for want in ["nameserver 10.9.9.9", "search example.test", "options ndots:3", "77", "4321", "7", "100", "200"] {
            ensure!(has(want), "no {want:?} in {lines:#?}");
        }
        ensure!(lines[0].split(' ').any(|group| group == "1234"), "groups: {lines:#?}");
        for name in ["other", "alias"] {
            let entry = lines.iter().find(|line| line.starts_with("10.1.2.3"));
            ensure!(lines.iter().any(|line| line.starts_with("10.1.2.3") && line.contains(name)), "{name}: {entry:?}");
        }
        for set in ["CapBnd", "CapEff"] {
            let line =
                lines.iter().find_map(|line| line.strip_prefix(&format!("{set}:"))).context("no capabilities")?;
            let bits = u64::from_str_radix(line.trim(), 16)?;
            ensure!(bits & CHOWN == 0 && bits & NET_ADMIN != 0, "{set} is {bits:x}");
        }
        self.init().await.context("init")?;
        self.terminal().await.context("terminal")?;
        self.log_drivers().await.context("log drivers")
    }

    async fn init(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("cat /proc/1/comm; exit 9");
        plan.settings.init = Some(true);
        self.start(&plan).await?;
        let exit = within(self.driver.wait(plan.task)).await?;
        ensure!(exit.code == 9, "{exit:?}");
        let lines = self.lines(&plan, LogQuery::default()).await?;
        ensure!(text(&lines, LogStream::Stdout) == ["docker-init"], "{lines:?}");
        self.remove(&plan).await
    }

    /// A driver has terminals, or refuses them by name.
    async fn terminal(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("[ -t 1 ] && echo a terminal");
        plan.settings.tty = true;
        match within(self.driver.prepare(&plan)).await {
            Ok(_) => {
                let lines = self.run_to_end(&plan).await?;
                ensure!(lines == ["a terminal"], "{lines:?}");
                Ok(())
            }
            Err(DriverError::Refused(error)) if error.contains("a terminal (TTY)") => Ok(()),
            Err(other) => bail!("{other:?}"),
        }
    }

    async fn log_drivers(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("echo heard");
        let driver = |name: &str, options: &[(&str, &str)]| {
            let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Some(LogDriver { name: name.to_owned(), options })
        };
        plan.log_driver = driver("json-file", &[("max-size", "1m"), ("max-file", "2")]);
        ensure!(self.run_to_end(&plan).await? == ["heard"]);

        let mut plan = self.plan("echo unheard");
        plan.log_driver = driver("none", &[]);
        self.start(&plan).await?;
        within(self.driver.wait(plan.task)).await?;
        let lines = self.lines(&plan, LogQuery::default()).await;
        let said = lines.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains("configured logging driver does not support reading"), "{lines:?}");
        self.remove(&plan).await?;

        let mut plan = self.plan("echo lost");
        plan.log_driver = driver("no-such-driver", &[]);
        let prepared = within(self.driver.prepare(&plan)).await;
        let started = if prepared.is_ok() { within(self.driver.start(plan.task)).await.map(drop) } else { Ok(()) };
        let said = prepared.map(drop).and(started).err().map(|error| format!("{:#}", anyhow::Error::from(error)));
        ensure!(said.as_ref().is_some_and(|said| said.contains("no-such-driver")), "{said:?}");
        self.remove(&plan).await
    }
}
