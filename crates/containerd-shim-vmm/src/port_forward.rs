//! Forwards the connections to the loopback addresses of a network namespace to the guest that has taken over its interfaces.
//!
//! The CRI plugin connects to `localhost` in the namespace of a pod for `PortForward`.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use vmm_network::{LoopbackListener, Namespace};
use vmm_protocol::{Ending, with_causes};

use crate::error::ShimError;
use crate::log;
use crate::pod::{Pod, log_error};
use crate::signal::SIGKILL;

/// How long the next connection waits after one could not be accepted, for example for lack of descriptors.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Takes over the loopback addresses of a namespace; `None`, after a message, if the kernel cannot.
pub(crate) fn listen(namespace: &Path) -> Option<LoopbackListener> {
    let listener = Namespace::open(namespace).and_then(|namespace| namespace.listen_on_loopback());
    let log_error = |error| {
        log(format_args!(
            "ports cannot be forwarded: {}",
            with_causes(&error)
        ))
    };
    listener.map_err(log_error).ok()
}

/// Forwards connections to the guest of the pod.
pub(crate) async fn forward(pod: Arc<Pod>, loopback: LoopbackListener) {
    let listen = || {
        let listener = loopback.socket().try_clone()?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let listener = match listen() {
        Ok(listener) => listener,
        Err(error) => return log(format_args!("ports cannot be forwarded: {error}")),
    };
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let pod = Arc::clone(&pod);
                tokio::spawn(async move { log_error(relay(&pod, connection).await) });
            }
            Err(error) => {
                log(format_args!("a connection cannot be forwarded: {error}"));
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Moves the data of a connection until the server in the guest has closed it, or its client has gone.
async fn relay(pod: &Pod, mut client: TcpStream) -> Result<(), ShimError> {
    let port = client.local_addr().map(|address| address.port());
    let port = port.map_err(ShimError::file(
        "find the port of a connection to",
        "localhost",
    ))?;
    let mut execution = pod.guest.connect(port).await?;
    let (input, output) = (execution.stdin.take(), execution.stdout.take());
    let (Some(mut input), Some(mut output)) = (input, output) else {
        return Ok(());
    };
    let (mut reader, mut writer) = client.split();
    let send = async {
        let _ = copy(&mut reader, &mut input).await;
        drop(input);
        pending().await
    };
    let received = tokio::select! {
        received = copy(&mut output, &mut writer) => received,
        received = send => received,
    };
    match received {
        Ok(_) if execution.wait().await.is_ok_and(is_success) => {}
        // The port is closed, which the client notices as an error.
        Ok(_) => client
            .set_zero_linger()
            .map_err(ShimError::file("reset a connection to", "localhost"))?,
        // The client has gone.
        Err(_) => {
            let _ = execution.signal_command(SIGKILL);
        }
    }
    Ok(())
}

fn is_success(ending: Ending) -> bool {
    matches!(ending, Ending::Exited { code: 0 })
}
