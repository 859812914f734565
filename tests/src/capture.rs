//! Listens to everything that crosses a laboratory's switch, and looks for texts in it.
//!
//! Frames are looked at one by one and not kept, so a text that two frames share is not found: say it more than once.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};

use crate::http;
use crate::lab::Lab;

/// Bytes of a frame at most: cables between namespaces carry what the kernel has not cut yet.
const FRAME_BYTES_MAX: usize = 128 * 1024;

/// Bytes that may wait to be looked at; when more do, frames are lost and counted.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// How long to listen until looking whether to stop.
const TURN: Duration = Duration::from_millis(100);

/// What crossed the switch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Frames, each counted once on every port of the switch that it passed.
    pub frames: usize,
    /// Bytes of them.
    pub bytes: usize,
    /// How many frames held each text, in the order in which they were given.
    pub hits: Vec<usize>,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    listener: JoinHandle<Result<Heard>>,
}

impl Capture {
    /// Begins to listen for `texts`.
    pub fn start(lab: &Lab, texts: &[&str]) -> Result<Self> {
        let switch = lab.client_namespace().context("a laboratory on loopback has no switch")?;
        let socket = http::in_namespace(Some(&switch), || {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ALL))?;
            set_socket_recv_buffer_size_force(&socket, WAITING_BYTES_MAX)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(TURN))?;
            Ok(socket)
        })
        .context("listen on the switch")?;
        let stop = Arc::new(AtomicBool::new(false));
        let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        let stopped = stop.clone();
        let listener = std::thread::spawn(move || listen(&socket, &texts, &stopped));
        Ok(Self { stop, listener })
    }

    /// Stops listening and returns what was heard; an error if a single frame was missed.
    pub fn stop(self) -> Result<Heard> {
        self.stop.store(true, Ordering::Relaxed);
        self.listener.join().unwrap_or_else(|_| Err(anyhow!("the listener panicked")))
    }
}

fn listen(socket: &OwnedFd, texts: &[Vec<u8>], stop: &AtomicBool) -> Result<Heard> {
    let mut heard = Heard { hits: vec![0; texts.len()], ..Heard::default() };
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        // What was sent before the end waits already: it is heard, and nothing is waited for.
        let ending = stop.load(Ordering::Relaxed);
        let flags = if ending { RecvFlags::TRUNC | RecvFlags::DONTWAIT } else { RecvFlags::TRUNC };
        match recv(socket, &mut frame[..], flags) {
            Ok((_, length)) => {
                ensure!(length <= frame.len(), "a frame has {length} bytes");
                heard.frames += 1;
                heard.bytes += length;
                for (hits, text) in heard.hits.iter_mut().zip(texts) {
                    *hits += usize::from(holds(&frame[..length], text));
                }
            }
            Err(Errno::AGAIN) if ending => break,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).context("listen on the switch"),
        }
    }
    let lost = lost(socket)?;
    ensure!(lost == 0, "{lost} frames were not heard");
    Ok(heard)
}

fn holds(frame: &[u8], text: &[u8]) -> bool {
    frame.windows(text.len()).any(|window| window == text)
}

/// Returns how many frames found no room since this was asked last. Source: packet(7), `PACKET_STATISTICS`.
fn lost(socket: &OwnedFd) -> Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = u32::try_from(size_of_val(&statistics))?;
    // SAFETY: the pointers are to live values, and `length` says how large the first one is.
    let result = unsafe {
        let (value, length) = ((&raw mut statistics).cast(), &raw mut length);
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, value, length)
    };
    if result == 0 { Ok(statistics.tp_drops) } else { Err(io::Error::last_os_error()).context("ask for statistics") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_anywhere_in_a_frame() {
        for (frame, want) in [("text", true), ("a text, or so", true), ("tex", false), ("a texx", false), ("", false)] {
            assert_eq!(holds(frame.as_bytes(), b"text"), want, "{frame}");
        }
    }
}
