//! Looks at what the checks of a container find. They are its supervisor's business, which writes it down.

use std::io;
use std::time::Duration;

use shoal_control::task::health::{HealthStatus, Policy};

use super::bundle::{BundleDir, HealthRecord};
use crate::driver::HealthReport;

/// Looks between two checks, and how long to wait between looks at least and at most.
const LOOKS: u32 = 8;
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Waits until the checks find a container otherwise than `known`.
pub async fn next(directory: &BundleDir, policy: &Policy, known: Option<HealthStatus>) -> io::Result<HealthReport> {
    let pause = (policy.interval.min(policy.start_interval) / LOOKS).clamp(LOOK_MIN, LOOK_MAX);
    loop {
        let HealthRecord { status, output, .. } = directory.health()?;
        if known != Some(status) {
            return Ok(HealthReport { status, output });
        }
        tokio::time::sleep(pause).await;
    }
}
