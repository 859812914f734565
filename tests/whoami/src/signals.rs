//! The end: the first process of a container has to handle SIGTERM itself, as the kernel ignores it for one that does not.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// After SIGTERM, how long requests in flight may take to finish. Less than the 100 ms in which the process must leave.
const DRAIN_MAX: Duration = Duration::from_millis(70);

static STOPPING: AtomicBool = AtomicBool::new(false);

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// Where the handler writes; set before the handler is installed.
static WAKE: AtomicI32 = AtomicI32::new(-1);

// The standard library has no signals, and a crate for two calls is not worth its place in a static binary of this size.
unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn write(descriptor: i32, bytes: *const u8, count: usize) -> isize;
}

extern "C" fn on_signal(_number: i32) {
    // SAFETY: write(2) may be called in a signal handler; the byte is static and the descriptor is never closed.
    unsafe { write(WAKE.load(Ordering::SeqCst), b"!".as_ptr(), 1) };
}

/// Returns whether the process was told to end.
pub fn is_stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

/// Ends the process soon after SIGTERM or SIGINT, with status 0, giving it a moment to become idle.
pub fn watch(is_idle: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    let (mut reader, writer) = UnixStream::pair()?;
    WAKE.store(writer.as_raw_fd(), Ordering::SeqCst);
    thread::Builder::new().stack_size(crate::STACK_BYTES).spawn(move || {
        let _writer = writer;
        let _ = reader.read_exact(&mut [0]);
        STOPPING.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + DRAIN_MAX;
        while !is_idle() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        process::exit(0);
    })?;
    for number in [SIGTERM, SIGINT] {
        // SAFETY: the handler only makes an async-signal-safe call, and both numbers are signals that can be handled.
        unsafe { signal(number, on_signal) };
    }
    Ok(())
}
