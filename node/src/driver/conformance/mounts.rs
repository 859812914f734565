//! Mounts: what every driver refuses, and what real containers see of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use shoal_protocol::spec::Mount;
use shoal_protocol::spec::mount::{BindOptions, MountKind, Propagation, TmpfsOptions, VolumeOptions};

use super::{Suite, fresh_id, text, within};
use crate::driver::{DriverError, LogQuery, LogStream};

/// A directory of the host that goes with its value.
struct HostDirectory(PathBuf);

impl HostDirectory {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("shoal-conformance-{:x}", fresh_id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for HostDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mount(kind: MountKind, source: &str, target: &str) -> Mount {
    Mount { kind, source: source.to_owned(), target: target.to_owned(), ..Mount::default() }
}

impl Suite<'_> {
    /// A task is rejected by a node that lacks the source of a bind mount.
    pub(super) async fn missing_sources(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("exit 0");
        let source = format!("/no/such/source-{:x}", fresh_id());
        plan.mounts.push(mount(MountKind::Bind, &source, "/data"));
        let prepared = within(self.driver.prepare(&plan)).await;
        let want = format!("invalid mount config for type \"bind\": bind source path does not exist: {source}");
        ensure!(matches!(&prepared, Err(DriverError::Refused(said)) if *said == want), "{prepared:?} is not {want}");
        ensure!(self.find(plan.task).await?.is_none(), "nothing was made");
        ensure!(!Path::new(&source).exists(), "the source was made");
        self.remove(&plan).await
    }

    pub(super) async fn mounts(&self) -> anyhow::Result<()> {
        self.binds().await.context("binds")?;
        self.volumes().await.context("volumes")?;
        self.tmpfs().await.context("tmpfs")?;
        self.nested().await.context("mounts in mounts")?;
        self.links().await.context("symbolic links")?;
        self.protected().await.context("/proc")
    }

    /// Runs a script with mounts on a read-only root to its end and returns what it wrote.
    async fn with_mounts(&self, script: &str, mounts: &[Mount]) -> anyhow::Result<Vec<String>> {
        let mut plan = self.plan(script);
        plan.mounts = mounts.to_vec();
        plan.read_only = true;
        self.start(&plan).await?;
        within(self.driver.wait(plan.task)).await?;
        let lines = self.lines(&plan, LogQuery::default()).await?;
        self.remove(&plan).await?;
        Ok(text(&lines, LogStream::Stdout))
    }

    async fn binds(&self) -> anyhow::Result<()> {
        let host = HostDirectory::new()?;
        fs::write(host.path("greeting"), "hello\n")?;
        fs::create_dir(host.path("out"))?;
        let read_only = Mount {
            read_only: true,
            bind_options: Some(BindOptions { propagation: Propagation::Rprivate, non_recursive: false }),
            ..mount(MountKind::Bind, &host.path(""), "/in")
        };
        let mounts = [
            read_only,
            mount(MountKind::Bind, &host.path("out"), "/new/deep"),
            mount(MountKind::Bind, &host.path("greeting"), "/etc/motd"),
            mount(MountKind::Bind, &host.path("greeting"), "/dev/motd"),
        ];
        let script = "cat /in/greeting; touch /in/file || echo read-only; echo back > /new/deep/file; \
                      cat /etc/motd /dev/motd; cat /etc/hosts | grep -c localhost > /dev/null && echo hosts";
        let lines = self.with_mounts(script, &mounts).await?;
        ensure!(lines == ["hello", "read-only", "hello", "hello", "hosts"], "{lines:?}");
        ensure!(fs::read_to_string(host.path("out/file"))? == "back\n", "a container's file is not on the host");
        ensure!(!Path::new(&host.path("file")).exists());
        Ok(())
    }

    async fn volumes(&self) -> anyhow::Result<()> {
        let name = format!("shoal-test-{:x}", fresh_id());
        // With the image's programs, which are then found in the volume.
        let lines = self.with_mounts("touch /bin/kept; echo up", &[mount(MountKind::Volume, &name, "/bin")]).await?;
        ensure!(lines == ["up"], "an empty volume has what the image has: {lines:?}");
        let again = Mount { read_only: true, ..mount(MountKind::Volume, &name, "/data") };
        let script = "ls -d /data/kept; busybox readlink /data/env; touch /data/more || echo read-only";
        let lines = self.with_mounts(script, std::slice::from_ref(&again)).await?;
        ensure!(lines == ["/data/kept", "busybox", "read-only"], "a volume keeps what it has: {lines:?}");

        let no_copy = VolumeOptions { no_copy: true, ..VolumeOptions::default() };
        let empty = Mount { volume_options: Some(no_copy), ..mount(MountKind::Volume, &format!("{name}-2"), "/etc") };
        let lines = self.with_mounts("ls -d /etc/passwd || echo empty", &[empty]).await?;
        ensure!(lines == ["empty"], "{lines:?}");
        let script = "ls /etc/passwd; ls -d /etc/mine || echo new; touch /etc/mine";
        for _ in 0..2 {
            let lines = self.with_mounts(script, &[mount(MountKind::Volume, "", "/etc")]).await?;
            ensure!(lines == ["/etc/passwd", "new"], "a volume without a name is of one container: {lines:?}");
        }
        let mode = "busybox stat -c '%a %u' /tmp/";
        let lines = self.with_mounts(mode, &[mount(MountKind::Volume, "", "/tmp")]).await?;
        ensure!(lines == ["1777 0"], "a volume has the mode of the image's directory: {lines:?}");
        Ok(())
    }

    async fn tmpfs(&self) -> anyhow::Result<()> {
        let limited = Mount {
            tmpfs_options: Some(TmpfsOptions { size_bytes: 1 << 20, mode: 0o1750 }),
            ..mount(MountKind::Tmpfs, "", "/limited")
        };
        let shared_memory = Mount {
            tmpfs_options: Some(TmpfsOptions { size_bytes: 2 << 20, mode: 0 }),
            ..mount(MountKind::Tmpfs, "", "/dev/shm")
        };
        let mounts = [
            limited,
            shared_memory,
            mount(MountKind::Tmpfs, "", "/etc"),
            Mount { read_only: true, ..mount(MountKind::Tmpfs, "", "/fixed") },
        ];
        let script = "busybox stat -c %a /limited; busybox stat -c %a /etc/; busybox stat -c %a /fixed; \
                      touch /fixed/file || echo read-only; cat /proc/mounts";
        let lines = self.with_mounts(script, &mounts).await?;
        ensure!(lines.get(..4) == Some(&["1750", "755", "1777", "read-only"].map(str::to_owned)), "{lines:?}");
        for (target, size) in [("/limited", "size=1024k"), ("/dev/shm", "size=2048k")] {
            let found: Vec<&String> = lines.iter().filter(|line| line.contains(&format!(" {target} tmpfs "))).collect();
            ensure!(found.len() == 1, "{target} is not mounted once: {lines:#?}");
            for option in [size, "nosuid", "nodev", "noexec"] {
                ensure!(found[0].contains(option), "{target} is not {option}: {found:?}");
            }
        }
        Ok(())
    }

    /// Outer mounts do not hide inner ones, whatever their order.
    async fn nested(&self) -> anyhow::Result<()> {
        let host = HostDirectory::new()?;
        fs::write(host.path("inner"), "inner\n")?;
        let mounts = [
            mount(MountKind::Bind, &host.path("inner"), "/a/b/c"),
            mount(MountKind::Tmpfs, "", "/a/b"),
            mount(MountKind::Volume, "", "/a"),
        ];
        let lines = self.with_mounts("cat /a/b/c; ls /a; ls /a/b", &mounts).await?;
        ensure!(lines == ["inner", "b", "c"], "{lines:?}");
        Ok(())
    }

    /// Links in a volume, which another container may have written, lead nowhere but into the container.
    async fn links(&self) -> anyhow::Result<()> {
        let name = format!("shoal-test-{:x}", fresh_id());
        let volume = mount(MountKind::Volume, &name, "/v");
        let script = "busybox ln -s / /v/up; busybox ln -s ../../../../../../../.. /v/relative; echo up";
        ensure!(self.with_mounts(script, std::slice::from_ref(&volume)).await? == ["up"]);
        let mounts = [
            volume,
            mount(MountKind::Tmpfs, "", &format!("/v/up/{name}-a")),
            mount(MountKind::Tmpfs, "", &format!("/v/relative/{name}-b")),
        ];
        let lines = self.with_mounts(&format!("ls -d /{name}-a /{name}-b"), &mounts).await?;
        ensure!(lines == [format!("/{name}-a"), format!("/{name}-b")], "{lines:?}");
        for name in [format!("/{name}-a"), format!("/{name}-b")] {
            ensure!(!Path::new(&name).exists(), "{name} was made on the host");
        }
        Ok(())
    }

    async fn protected(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("echo up");
        plan.mounts = vec![mount(MountKind::Volume, "", "/proc/tty")];
        let started = self.start(&plan).await;
        let said = started.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains("inside /proc"), "a mount in /proc: {said:?}");
        self.remove(&plan).await
    }
}
