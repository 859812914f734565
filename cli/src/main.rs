//! shoald
fn main() {}
