//! The container's side of its network: addresses and routes inside the supervisor's network namespace.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use futures::TryStreamExt;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::SuperviseError;
use crate::driver::embedded::bundle::Bundle;

/// The container's interface, as Docker names it.
pub const INTERFACE: &str = "eth0";

/// Brings up the loopback interface and the one that the driver has put here.
pub fn configure(bundle: &Bundle) -> Result<(), SuperviseError> {
    // Users other than root may listen on low ports and send pings, as in Docker. Kernels without it lack nothing else.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    for (name, value) in bundle.plan.settings.sysctls.iter().filter(|(name, _)| is_network(name)) {
        // Names hold no separator of paths: they were checked with the spec.
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(path, value).map_err(|error| SuperviseError::Invalid(format!("sysctl {name}={value}: {error}")))?;
    }
    // This process stays single-threaded: the runtime lives on this thread and has gone before the container is created.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| SuperviseError::io("failed to talk to the kernel", error))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| SuperviseError::io("failed to talk to the kernel", error))?;
        let connection = tokio::spawn(connection);
        let result = bring_up(&handle, bundle).await;
        connection.abort();
        result.map_err(|error| SuperviseError::io("failed to set up the network", io::Error::other(error)))
    })
}

/// Returns whether a kernel parameter belongs to the network namespace, which is the supervisor's and set from there.
pub fn is_network(sysctl: &str) -> bool {
    sysctl.starts_with("net.")
}

async fn bring_up(handle: &Handle, bundle: &Bundle) -> Result<(), rtnetlink::Error> {
    const LOOPBACK: u32 = 1;
    handle.link().set(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await?;
    let mut links = handle.link().get().match_name(INTERFACE.to_owned()).execute();
    let Some(link) = links.try_next().await? else { return Err(rtnetlink::Error::RequestFailed) };
    let index = link.header.index;
    handle.address().add(index, bundle.address.into(), bundle.prefix).execute().await?;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(bundle.gateway).build();
    handle.route().add(route).execute().await
}
