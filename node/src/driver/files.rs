//! Secrets and configs of tasks as files in memory, from where drivers mount them into containers.
//!
//! A task's files lie in a directory of their own on a file system in memory, from before its container is made until it was
//! started: a mount keeps what it shows, so the names are not needed any longer, and the bytes go with the container. Nothing
//! is ever written to a disk.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::fs::statfs;
use shoal_control::core::Withheld;
use shoal_control::task::{ContainerPlan, PlannedFile};
use shoal_protocol::registry_auth::RegistryAuth;
use shoal_protocol::spec::Mount;
use shoal_protocol::spec::mount::MountKind;
use shoal_protocol::spec::templates::{self, PayloadContext};
use shoal_protocol::{Kind, NodeId, ObjectId, TaskId};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::DriverError;

/// Where file systems in memory are, in the order in which they are tried. A Docker Engine has to see the same one.
const MEMORY: [&str; 2] = ["/dev/shm", "/run"];

/// Source: Linux, `statfs(2)`.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Tasks whose files are fetched at a time; further ones wait.
const FETCHED_AT_ONCE: usize = 4;

/// Where the content of files comes from.
#[async_trait]
pub trait FileSource: Send + Sync + 'static {
    /// Returns the content of a secret or config that a task of this node uses, within a bounded time.
    async fn content(&self, task: TaskId, file: &PlannedFile) -> Result<FileContent, Withheld>;

    /// Returns what the registry of a task's image knows its user by, if its service came with that, within a bounded time.
    async fn credentials(&self, task: TaskId) -> Result<Option<RegistryAuth>, Withheld>;
}

/// What is in a secret or config.
#[derive(Debug, Clone)]
pub struct FileContent {
    /// Its data.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Whether they are a template that this node fills in.
    pub is_template: bool,
}

/// Content that is known beforehand, by the identifiers of secrets and configs; what begins with `{{` is a template. Test
/// support that the daemon never uses.
#[derive(Debug, Default)]
pub struct KnownFiles(pub BTreeMap<ObjectId, Vec<u8>>);

#[async_trait]
impl FileSource for KnownFiles {
    async fn content(&self, _: TaskId, file: &PlannedFile) -> Result<FileContent, Withheld> {
        let bytes = self.0.get(&file.id).cloned().ok_or_else(|| Withheld::Refused("it is not known".to_owned()))?;
        Ok(FileContent { is_template: bytes.starts_with(b"{{"), bytes: Zeroizing::new(bytes) })
    }

    async fn credentials(&self, _: TaskId) -> Result<Option<RegistryAuth>, Withheld> {
        Ok(None)
    }
}

/// Why a task's files are not there.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// One cannot be had.
    #[error(transparent)]
    Withheld(#[from] Withheld),
    /// They cannot be kept in memory.
    #[error(transparent)]
    Memory(#[from] DriverError),
}

/// The files of a node's tasks.
pub struct TaskFiles {
    source: Arc<dyn FileSource>,
    /// The directory's name, the node's alone.
    name: String,
    fetches: Semaphore,
    /// Held while directories are made or removed.
    changing: Mutex<()>,
}

impl TaskFiles {
    /// Returns the files of a node of which none are there yet. What an earlier daemon of the node left is removed: tasks that
    /// were not started by then are prepared again.
    pub fn new(node: NodeId, source: Arc<dyn FileSource>) -> Self {
        let name = format!("shoal-{node}");
        let files = Self { source, name, fetches: Semaphore::new(FETCHED_AT_ONCE), changing: Mutex::default() };
        files.clear();
        files
    }

    fn clear(&self) {
        for memory in MEMORY {
            let _ = fs::remove_dir_all(Path::new(memory).join(&self.name));
        }
    }

    /// Fetches the files of a plan and returns the plan with mounts of them. Files that are there already are replaced.
    pub async fn provide(&self, plan: &ContainerPlan) -> Result<ContainerPlan, FileError> {
        let mut plan = plan.clone();
        if plan.files.is_empty() {
            return Ok(plan);
        }
        let _permit = self.fetches.acquire().await; // the semaphore is never closed
        let mut contents = Vec::new();
        for file in &plan.files {
            let content = self.source.content(plan.task, file).await.map_err(|error| named(file, error))?;
            contents.push(content);
        }
        let mounts = self.write(&plan, &expanded(&plan, contents)?)?;
        plan.mounts.extend(mounts);
        Ok(plan)
    }

    /// Fetches what the registry of a task's image knows its user by, if there is any. It is nowhere but in the answer.
    pub async fn credentials(&self, task: TaskId) -> Result<Option<RegistryAuth>, FileError> {
        let _permit = self.fetches.acquire().await;
        let text = |reason: String| format!("registry credentials: {reason}");
        self.source.credentials(task).await.map_err(|error| {
            FileError::Withheld(match error {
                Withheld::NotYet(reason) => Withheld::NotYet(text(reason)),
                Withheld::Refused(reason) => Withheld::Refused(text(reason)),
            })
        })
    }

    /// Removes the files of a task: it was started, or never will be.
    pub fn remove(&self, task: TaskId) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for memory in MEMORY {
            let directory = Path::new(memory).join(&self.name);
            match fs::remove_dir_all(directory.join(task.to_string())) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => tracing::error!(%task, %error, "failed to remove the files of a task from memory"),
            }
            // Only when it was the last one.
            let _ = fs::remove_dir(directory);
        }
    }

    fn write(&self, plan: &ContainerPlan, contents: &[Zeroizing<Vec<u8>>]) -> Result<Vec<Mount>, DriverError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let root = private_directory(&self.name)?;
        let failed = |error: io::Error| {
            DriverError::Failed { what: format!("failed to keep files in {}", root.display()), source: error.into() }
                .or_full(&root)
        };
        let directory = root.join(plan.task.to_string());
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        let mut mounts = Vec::new();
        for (number, (file, content)) in plan.files.iter().zip(contents).enumerate() {
            let place = directory.join(number.to_string());
            write_file(&place, file, content).map_err(failed)?;
            mounts.push(Mount {
                kind: MountKind::Bind,
                source: place.to_string_lossy().into_owned(),
                target: file.path.clone(),
                read_only: true,
                ..Mount::default()
            });
        }
        Ok(mounts)
    }
}

impl Drop for TaskFiles {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Fills in the contents that are templates. They read the others as they were before that, as with Swarm.
fn expanded(plan: &ContainerPlan, contents: Vec<FileContent>) -> Result<Vec<Zeroizing<Vec<u8>>>, Withheld> {
    let of = |kind| {
        let files = plan.files.iter().zip(&contents).filter(move |(file, _)| file.kind == kind);
        files.map(|(file, content)| (file.target.as_str(), content.bytes.as_slice())).collect::<Vec<_>>()
    };
    let (secrets, configs) = (of(Kind::Secret), of(Kind::Config));
    let context = PayloadContext { task: &plan.context, env: &plan.env, secrets: &secrets, configs: &configs };
    let mut expanded = Vec::new();
    for (file, content) in plan.files.iter().zip(&contents) {
        expanded.push(if content.is_template {
            let text = templates::expand_payload(&content.bytes, context)
                .map_err(|error| named(file, Withheld::Refused(error.to_string())))?;
            Zeroizing::new(text.into_bytes())
        } else {
            content.bytes.clone()
        });
    }
    Ok(expanded)
}

fn named(file: &PlannedFile, error: Withheld) -> Withheld {
    let text = |reason: String| format!("{} {}: {reason}", file.kind.name(), file.name);
    match error {
        Withheld::NotYet(reason) => Withheld::NotYet(text(reason)),
        Withheld::Refused(reason) => Withheld::Refused(text(reason)),
    }
}

/// Finds or makes a directory in memory that is this user's alone.
fn private_directory(name: &str) -> Result<PathBuf, DriverError> {
    let mut reasons = Vec::new();
    for memory in MEMORY.map(Path::new) {
        let is_in_memory =
            statfs(memory).is_ok_and(|status| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&(status.f_type as u64)));
        if !is_in_memory {
            reasons.push(format!("{} is not in memory", memory.display()));
            continue;
        }
        let directory = memory.join(name);
        match make_private(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => reasons.push(format!("{}: {error}", directory.display())),
        }
    }
    Err(DriverError::Refused(format!(
        "secrets and configs are kept in memory, and there is no place for them: {} (mount a tmpfs at {})",
        reasons.join(", "),
        MEMORY[0]
    )))
}

fn make_private(directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Anyone may have made it before.
    let status = fs::symlink_metadata(directory)?;
    let is_own = status.is_dir() && status.uid() == rustix::process::geteuid().as_raw() && status.mode() & 0o077 == 0;
    if is_own { Ok(()) } else { Err(io::Error::other("it belongs to somebody else")) }
}

fn write_file(place: &Path, file: &PlannedFile, content: &[u8]) -> io::Result<()> {
    let mut handle = OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?;
    handle.write_all(content)?;
    chown(place, Some(file.uid), Some(file.gid))?;
    fs::set_permissions(place, fs::Permissions::from_mode(file.mode))
}

#[cfg(test)]
mod tests;
