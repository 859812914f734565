//! Why a command did not do what it was asked.

use std::io;

use shoal_protocol::template::TemplateError;

/// Why a command failed; what the daemon had already done stays done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The daemon refused, in its own words.
    #[error("Error response from daemon: {message}")]
    Daemon {
        /// The HTTP status.
        status: u16,
        /// The daemon's words.
        message: String,
    },
    /// Nobody answers on the socket or port.
    #[error("cannot connect to the shoal daemon at {daemon}: {source}; {}", way_to(source))]
    Unreachable {
        /// Where it should be.
        daemon: String,
        /// What connecting said.
        source: io::Error,
    },
    /// A template of `--format` cannot be read or carried out; nothing was printed.
    #[error("template parsing error: {0}")]
    Template(#[from] TemplateError),
    /// The command line makes no sense.
    #[error("{0}")]
    Misused(String),
    /// Anything else, in words for people; empty when all was said already.
    #[error("{0}")]
    Failed(String),
}

/// Says what helps where connecting failed.
fn way_to(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "are you root, or may you write to the socket?",
        _ => "is shoald running, and does -H, SHOAL_HOST or DOCKER_HOST name where it listens?",
    }
}

impl CliError {
    /// Returns the exit status of the process.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Daemon { .. } | Self::Unreachable { .. } | Self::Template(_) | Self::Failed(_) => 1,
            Self::Misused(_) => 2,
        }
    }

    /// Adds a line that tells the way out.
    pub(crate) fn with(self, hint: &str) -> Self {
        match self {
            Self::Daemon { status, message } => Self::Daemon { status, message: format!("{message}\n{hint}") },
            Self::Failed(text) => Self::Failed(format!("{text}\n{hint}")),
            Self::Unreachable { .. } | Self::Template(_) | Self::Misused(_) => self,
        }
    }

    /// Returns whether the daemon knows no such object.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Daemon { status: 404, .. })
    }
}
