//! From what the agent asks for and what the image says to what is run. Pure but for the container's identifier.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};
use shoal_control::task::ContainerPlan;
use shoal_control::task::health::Policy;
use shoal_protocol::spec::Healthcheck;
use shoal_protocol::subnet::Subnet;

use super::EmbeddedConfig;
use super::bundle::{Bundle, wall_now};
use super::images::{Image, hex, platform_architecture};
use super::process::parse_signal;
use super::subnet::Addresses;
use super::{settings, volumes};
use crate::driver::DriverError;

/// Where programs are looked for if neither image nor spec says so. Source: Docker.
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the kernel takes.
const HOSTNAME_BYTES_MAX: usize = 64;
const STOP_SIGNAL_DEFAULT: &str = "SIGTERM";

/// Resolves a plan. The node may be unfit for the image (`Refused`), or the settings wrong anywhere (`Invalid`).
pub fn resolve(
    plan: &ContainerPlan,
    image: &Image,
    config: &EmbeddedConfig,
    subnet: Subnet,
    address: Ipv4Addr,
) -> Result<Bundle, DriverError> {
    let (os, architecture) = (image.config.os.as_str(), image.config.architecture.as_str());
    if os != "linux" || architecture != platform_architecture() {
        let own = platform_architecture();
        return Err(DriverError::Refused(format!(
            "image {} is for {os}/{architecture}, this node is linux/{own}",
            plan.image
        )));
    }
    let defaults = image.config.config.clone().unwrap_or_default();
    let chosen = |wanted: &str, default: Option<String>, last: &str| {
        let given = (!wanted.is_empty()).then(|| wanted.to_owned());
        given.or(default.filter(|text| !text.is_empty())).unwrap_or_else(|| last.to_owned())
    };
    let args = arguments(plan, defaults.entrypoint, defaults.cmd);
    if args.is_empty() {
        return Err(DriverError::Invalid("no command specified".to_owned()));
    }
    let hostname = chosen(&plan.hostname, None, &plan.task.short());
    if hostname.len() > HOSTNAME_BYTES_MAX {
        return Err(DriverError::Invalid(format!("host name '{hostname}' exceeds {HOSTNAME_BYTES_MAX} bytes")));
    }
    let stop_signal = chosen(&plan.stop_signal, defaults.stop_signal, STOP_SIGNAL_DEFAULT);
    let stop_signal =
        parse_signal(&stop_signal).ok_or_else(|| DriverError::Invalid(format!("invalid signal: {stop_signal}")))?;
    let dir = chosen(&plan.dir, defaults.working_dir, "/");
    if !dir.starts_with('/') {
        return Err(DriverError::Invalid(format!(
            "the working directory '{dir}' is invalid, it needs to be an absolute path"
        )));
    }
    let env = environment(&hostname, &defaults.env.unwrap_or_default(), &plan.env);
    let image_check: Option<Healthcheck> = match defaults.healthcheck {
        Some(check) => serde_json::from_value(check)
            .map_err(|error| DriverError::Invalid(format!("cannot read the health check of the image: {error}")))?,
        None => None,
    };
    let shell = defaults.shell.unwrap_or_default();
    let health = Policy::resolve(plan.healthcheck.as_ref(), image_check.as_ref(), &shell);
    let check = health.iter().flat_map(|policy| &policy.command);
    if args.iter().chain(check).chain(&env).chain([&dir, &hostname]).any(|text| text.contains('\0')) {
        return Err(DriverError::Invalid(
            "a NUL byte in command, health check, environment, directory or host name".to_owned(),
        ));
    }
    Ok(Bundle {
        plan: plan.clone(),
        cluster: config.cluster,
        container_id: new_id(config, plan),
        image_id: image.id.clone(),
        layers: image.layers.clone(),
        volumes: volumes::resolve(
            &plan.mounts,
            &config.data_dir,
            &config.data_dir.join("containers").join(plan.task.to_string()),
        ),
        args,
        env,
        dir,
        user: chosen(&plan.user, defaults.user, ""),
        hostname,
        exposed: exposed(defaults.exposed_ports.as_ref()),
        health,
        init: settings::init(plan)?,
        log: settings::log_limits(plan.log_driver.as_ref())?,
        stop_signal,
        address,
        gateway: subnet.host(Addresses::GATEWAY),
        prefix: subnet.prefix(),
        cgroup: format!("{}/{}", super::node_group(config.node), plan.task),
    })
}

/// Makes an identifier up: 64 hexadecimal digits.
fn new_id(config: &EmbeddedConfig, plan: &ContainerPlan) -> String {
    let seed = format!("{} {} {} {}", config.cluster, config.node, plan.task, wall_now().0);
    hex(&Sha256::digest(seed))
}

/// Reads what the image listens on. Whatever else stands there is only not shown.
fn exposed(ports: Option<&serde_json::Value>) -> Vec<String> {
    ports.and_then(|ports| ports.as_object()).map(|ports| ports.keys().cloned().collect()).unwrap_or_default()
}

/// A command replaces the image's entrypoint and with it the image's arguments. Source: Docker.
fn arguments(plan: &ContainerPlan, entrypoint: Option<Vec<String>>, cmd: Option<Vec<String>>) -> Vec<String> {
    let (program, default_args) = if plan.command.is_empty() {
        (entrypoint.unwrap_or_default(), cmd.unwrap_or_default())
    } else {
        (plan.command.clone(), Vec::new())
    };
    let args = if plan.args.is_empty() { default_args } else { plan.args.clone() };
    program.into_iter().chain(args).collect()
}

/// Later settings of a name replace earlier ones in their place; a name without a value removes the image's.
fn environment(hostname: &str, image: &[String], wanted: &[String]) -> Vec<String> {
    let first = [PATH_DEFAULT.to_owned(), format!("HOSTNAME={hostname}")];
    let mut env: Vec<String> = Vec::new();
    for variable in first.iter().chain(image).chain(wanted) {
        let name = variable.split('=').next().unwrap_or_default();
        let place = env.iter().position(|known| known.split('=').next() == Some(name));
        match (place, variable.contains('=')) {
            (Some(place), true) => env[place] = variable.clone(),
            (Some(place), false) => {
                env.remove(place);
            }
            (None, true) if !name.is_empty() => env.push(variable.clone()),
            (None, _) => {}
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn variables_replace_each_other_by_name() {
        let env = environment("web", &texts(&["PATH=/bin", "A=1", "B=2"]), &texts(&["B=3=4", "A", "C", "D="]));
        assert_eq!(env, texts(&["PATH=/bin", "HOSTNAME=web", "B=3=4", "D="]));
        assert_eq!(environment("web", &[], &[])[0], PATH_DEFAULT);
    }
}
