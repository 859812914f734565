//! What crosses a process boundary in shoal: identifiers, time, specs, task states, replicated records, peer messages and
//! their codec.
//!
//! No I/O, no async, no clock and no decisions live here. Both the daemon and its clients depend on this package; it
//! depends on neither.

pub mod codec;
pub mod discovery;
pub mod endpoint;
pub mod id;
pub mod image;
pub mod lease;
pub mod message;
pub mod object;
pub mod record;
pub mod registry_auth;
pub mod settings;
pub mod spec;
pub mod subnet;
pub mod task;
pub mod template;
pub mod time;
pub mod token;
pub mod value;
pub mod write;

pub use id::{ClusterId, NodeId, ObjectId, ServiceId, TaskId};
pub use object::Kind;
pub use record::{Key, Record, Stamp};
pub use task::TaskState;
pub use time::{Now, Time, WallTime};
