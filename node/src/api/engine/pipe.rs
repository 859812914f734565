//! What client and engine say to each other after they have left HTTP: `exec`, `attach`, a build's session.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::api::listen::Hangup;

/// Carries bytes both ways until the engine has said its last, or the client is gone.
///
/// A client that has said its last goes on reading: `echo x | docker exec -i …` waits for what the program makes of it. So
/// the end of its words is passed on, and its going away is looked for elsewhere.
pub(super) async fn join<C, E>(client: C, engine: E, hangup: Option<Hangup>)
where
    C: AsyncRead + AsyncWrite,
    E: AsyncRead + AsyncWrite,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_engine, mut to_engine) = tokio::io::split(engine);
    let inbound = async {
        // That the engine takes no more does not mean that it has said everything.
        let _ = tokio::io::copy(&mut from_client, &mut to_engine).await;
        let _ = to_engine.shutdown().await;
        match hangup {
            Some(hangup) => hangup.gone().await,
            None => std::future::pending().await,
        }
    };
    let outbound = async {
        let _ = tokio::io::copy(&mut from_engine, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        () = inbound => {}
        () = outbound => {}
    }
}
