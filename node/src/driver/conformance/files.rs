//! Secrets and configs as files: who may read them, that nobody may write them, and that they are in memory alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::ensure;
use shoal_control::task::PlannedFile;
use shoal_protocol::{Kind, ObjectId};

use super::{CALL_MAX, SLEEP, Suite, text, within};
use crate::driver::files::{KnownFiles, TaskFiles};
use crate::driver::{LogQuery, LogStream};

fn file(kind: Kind, id: u128, path: &str, (uid, gid, mode): (u32, u32, u32)) -> PlannedFile {
    PlannedFile {
        kind,
        id: ObjectId(id),
        name: format!("f{id}"),
        target: path.to_owned(),
        path: path.to_owned(),
        uid,
        gid,
        mode,
    }
}

impl Suite<'_> {
    pub(super) async fn files(&self) -> anyhow::Result<()> {
        let contents = [(1, "hidden\n"), (2, "conf=1\n"), (3, "deep\n")];
        let contents: BTreeMap<_, _> = contents.map(|(id, text)| (ObjectId(id), text.as_bytes().to_vec())).into();
        let files = TaskFiles::new(self.node.id, Arc::new(KnownFiles(contents)));
        // What the container sees after its start, when nothing is left outside of it.
        let look = "cat /run/secrets/one /two /etc/app/three; \
                    busybox stat -c '%a %u %g' /run/secrets/one /two /etc/app/three; \
                    echo more 2> /dev/null >> /two || echo read-only; busybox rm -f /two 2> /dev/null || echo stays; \
                    busybox stat -f -c %T /run/secrets/one; exit 0";
        let mut plan = self.plan(&format!("look() {{ {look}; }}; trap look TERM; echo up; {SLEEP}"));
        plan.stop_grace = CALL_MAX;
        plan.files = vec![
            file(Kind::Secret, 1, "/run/secrets/one", (33, 34, 0o400)),
            file(Kind::Config, 2, "/two", (0, 0, 0o644)),
            file(Kind::Config, 3, "/etc/app/three", (0, 7, 0o440)),
        ];
        let place = self.places(&plan.task.to_string());
        ensure!(place.is_empty(), "{place:?} was there before");
        let provided = files.provide(&plan).await?;
        ensure!(self.places(&plan.task.to_string()).len() == 1, "the files are kept until the container was started");
        self.start(&provided).await?;
        files.remove(plan.task);
        ensure!(self.places(&plan.task.to_string()).is_empty(), "the files were left outside of the container");
        self.wait_for_line(&plan, "up").await?;
        within(self.driver.stop(plan.task)).await?;
        let lines = self.lines(&plan, LogQuery::default()).await?;
        self.remove(&plan).await?;
        let want = ["up", "hidden", "conf=1", "deep", "400 33 34", "644 0 0", "440 0 7", "read-only", "stays", "tmpfs"];
        ensure!(text(&lines, LogStream::Stdout) == want, "{lines:?}");

        // One who is not their owner may read what the mode says.
        let mut plan = self.plan("cat /run/secrets/one > /dev/null 2>&1 || echo denied; cat /two");
        plan.user = "65534".to_owned();
        plan.read_only = true;
        plan.files = vec![
            file(Kind::Secret, 1, "/run/secrets/one", (33, 34, 0o400)),
            file(Kind::Config, 2, "/two", (0, 0, 0o444)),
        ];
        let provided = files.provide(&plan).await?;
        self.start(&provided).await?;
        within(self.driver.wait(plan.task)).await?;
        let lines = self.lines(&plan, LogQuery::default()).await?;
        self.remove(&plan).await?;
        files.remove(plan.task);
        ensure!(text(&lines, LogStream::Stdout) == ["denied", "conf=1"], "{lines:?}");
        Ok(())
    }

    /// Returns where files of a task are kept outside of its container.
    fn places(&self, task: &str) -> Vec<PathBuf> {
        let roots = ["/dev/shm", "/run"].map(|root| Path::new(root).join(format!("shoal-{}", self.node.id)).join(task));
        roots.into_iter().filter(|place| place.exists()).collect()
    }
}
