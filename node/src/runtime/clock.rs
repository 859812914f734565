//! The only reader of the clocks.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use shoal_protocol::{Now, Time, WallTime};

/// Returns the present moment: on the clock that counts while the machine sleeps, and as people tell the time.
pub fn now() -> Now {
    let since_boot = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(since_boot.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(since_boot.tv_nsec).unwrap_or(0);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        time: Time(seconds * 1000 + nanos / 1_000_000),
        wall: WallTime(u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX)),
    }
}
