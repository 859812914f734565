//! `shoald`, the daemon.

fn main() {}
