//! For tests: what is logged on this thread, as `--log-format json` has it.

use std::io;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tracing::Level;
use tracing::subscriber::DefaultGuard;

/// Takes what is logged as long as it lives.
pub(crate) struct Logged {
    bytes: Bytes,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Bytes(Arc<Mutex<Vec<u8>>>);

impl Logged {
    pub(crate) fn capture() -> Self {
        let bytes = Bytes::default();
        let writer = bytes.clone();
        let logs = tracing_subscriber::fmt().json().with_max_level(Level::DEBUG).with_writer(move || writer.clone());
        Self { bytes, _guard: tracing::subscriber::set_default(logs.finish()) }
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.bytes.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
