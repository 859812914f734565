//! What `shoal top` is made of: looks at the cluster, a state that keys and looks change, and its picture.
//!
//! All but [`watch`] and [`screen`] is pure: time comes in as an argument, and no terminal is needed to test it.

pub(crate) mod look;
pub(crate) mod picture;
pub(crate) mod rows;
pub(crate) mod screen;
pub(crate) mod state;
pub(crate) mod traffic;
pub(crate) mod watch;
