//! An answer that the daemon writes line by line, without an end.

use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::error::CliError;

/// Bytes of one line at most; more is not the daemon's format.
const LINE_BYTES_MAX: usize = 4 << 20;

/// The lines of an answer.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// Reads an answer line by line.
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, buffer: Vec::new() }
    }

    /// Returns the next line as soon as it is whole, with its end; `None` at the end of the answer.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, CliError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.drain(..=end).collect()));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(CliError::Failed(format!("a line of the daemon is larger than {LINE_BYTES_MAX} bytes")));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| CliError::Failed(format!("the daemon broke its events off: {error}")))?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
