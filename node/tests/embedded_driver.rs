//! The embedded driver with real containers. Needs root; leaves nothing behind.

use std::path::Path;

use anyhow::Context;
use shoal_control::task::NodeIdentity;
use shoal_node::driver::conformance::{self, TestImage};
use shoal_node::driver::embedded::{EmbeddedConfig, EmbeddedDriver};

async fn open(data_dir: &Path, node: &NodeIdentity) -> anyhow::Result<EmbeddedDriver> {
    let config = EmbeddedConfig {
        data_dir: data_dir.to_owned(),
        node: node.id,
        cluster: node.cluster,
        hostname: node.hostname.clone(),
        container_pool: "10.212.0.0/16".parse()?,
        supervisor_exe: env!("CARGO_BIN_EXE_shoald").into(),
    };
    Ok(EmbeddedDriver::open(config).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_driver_conforms() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let node = conformance::test_node();
    let driver = open(data.path(), &node).await?;
    let image = TestImage::build()?;
    let result = conformance::run(&driver, &node, &image).await;
    let isolated = conformance::run_isolated(&driver, &node, &image).await;
    driver.close().await.context("close")?;
    result.and(isolated)
}
