//! Flags about the health check of a container. Source: docker/cli, `healthCheckOptions` and `updateHealthcheck`.

use serde_json::{Map, Value, json};

use crate::error::CliError;
use crate::spec::slot;
use crate::units::Nanos;

/// The flags, which `service create` and `service update` share.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct HealthArgs {
    /// Command to run to check health
    #[arg(long, allow_hyphen_values = true, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between running the check (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    health_interval: Option<Nanos>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long, value_name = "N")]
    health_retries: Option<u32>,
    /// Time between running the check during the start period (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    health_start_interval: Option<Nanos>,
    /// Start period for the container to initialize before counting retries towards unstable (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    health_start_period: Option<Nanos>,
    /// Maximum time to allow one check to run (ns|us|ms|s|m|h)
    #[arg(long, value_name = "DURATION")]
    health_timeout: Option<Nanos>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthArgs {
    /// Writes what the flags say into a spec. What is empty or zero is left to the image.
    pub(crate) fn apply(&self, spec: &mut Value) -> Result<(), CliError> {
        let test = self.health_cmd.as_ref().map(|line| match line.as_str() {
            "" => Value::Null,
            line => json!(["CMD-SHELL", line]),
        });
        let nanos = |nanos: Option<Nanos>| nanos.map(|nanos| json!(nanos.0));
        let given = [
            ("Test", test),
            ("Interval", nanos(self.health_interval)),
            ("Timeout", nanos(self.health_timeout)),
            ("StartPeriod", nanos(self.health_start_period)),
            ("StartInterval", nanos(self.health_start_interval)),
            ("Retries", self.health_retries.map(|retries| json!(retries))),
        ];
        let is_given = given.iter().any(|(_, value)| value.is_some());
        if self.no_healthcheck && is_given {
            return Err(CliError::Misused("--no-healthcheck conflicts with --health-* options".to_owned()));
        }
        if !self.no_healthcheck && !is_given {
            return Ok(());
        }
        let place = slot(spec, &["TaskTemplate", "ContainerSpec", "Healthcheck"]);
        if self.no_healthcheck {
            *place = json!({"Test": ["NONE"]});
            return Ok(());
        }
        let mut check = place.take().as_object().cloned().unwrap_or_default();
        if check.get("Test").is_some_and(|test| test[0] == "NONE") {
            check.remove("Test");
        }
        for (name, value) in given {
            set(&mut check, name, value);
        }
        *place = Value::Object(check);
        Ok(())
    }
}

fn set(check: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    match value {
        None => {}
        Some(value) if value.is_null() || value == 0 => {
            check.remove(name);
        }
        Some(value) => {
            check.insert(name.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(text: &str) -> Option<Nanos> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn flags_change_the_check_as_dockers_client_does() {
        let of = |before: Value, args: HealthArgs| {
            let mut spec = json!({"TaskTemplate": {"ContainerSpec": {"Healthcheck": before}}});
            args.apply(&mut spec).map(|()| spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"].take())
        };
        let cmd = |line: &str| HealthArgs { health_cmd: Some(line.to_owned()), ..HealthArgs::default() };
        let none = || HealthArgs { no_healthcheck: true, ..HealthArgs::default() };
        for (name, before, args, want) in [
            ("nothing", Value::Null, HealthArgs::default(), Value::Null),
            ("a command", Value::Null, cmd("a b"), json!({"Test": ["CMD-SHELL", "a b"]})),
            ("the image's command", json!({"Test": ["CMD", "a"], "Retries": 2}), cmd(""), json!({"Retries": 2})),
            (
                "times",
                json!({"Test": ["CMD", "a"], "Timeout": 5}),
                HealthArgs {
                    health_interval: nanos("2s"),
                    health_timeout: nanos("0"),
                    health_start_period: nanos("3s"),
                    health_start_interval: nanos("1ms"),
                    health_retries: Some(4),
                    ..HealthArgs::default()
                },
                json!({"Test": ["CMD", "a"], "Interval": 2_000_000_000u64, "StartPeriod": 3_000_000_000u64,
                    "StartInterval": 1_000_000, "Retries": 4}),
            ),
            ("none", json!({"Test": ["CMD", "a"], "Retries": 2}), none(), json!({"Test": ["NONE"]})),
            ("some again", json!({"Test": ["NONE"]}), cmd("a"), json!({"Test": ["CMD-SHELL", "a"]})),
            (
                "the image's again",
                json!({"Test": ["NONE"]}),
                HealthArgs { health_retries: Some(1), ..HealthArgs::default() },
                json!({"Retries": 1}),
            ),
        ] {
            assert_eq!(of(before, args).unwrap(), want, "{name}");
        }
        let both = HealthArgs { no_healthcheck: true, ..cmd("a") };
        assert!(of(Value::Null, both).unwrap_err().to_string().contains("conflicts with --health-* options"));
    }
}
