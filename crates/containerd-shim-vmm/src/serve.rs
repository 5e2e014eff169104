use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::r#async::{Server, Service};
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;

use crate::args::Args;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::error::ShimError;
use crate::peer::RecordPeer;
use crate::pod::Pod;
use crate::service::TaskService;
use crate::state_dir::StateDir;
use crate::tokio_runtime;

/// The names of the Task API: of containerd 1.6 and 1.7, and of 2.x. Their messages are the same.
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// Serves the Task API until containerd shuts the pod down.
pub(crate) fn serve(args: &Args) -> Result<(), ShimError> {
    vmm_shim::use_one_heap();
    tokio_runtime()?.block_on(run(args))
}

async fn run(args: &Args) -> Result<(), ShimError> {
    let bundle = args.bundle.clone().map(Bundle::new);
    let bundle = bundle.ok_or_else(|| ShimError::Usage("no bundle".to_owned()))?;
    let state = bundle.address()?.as_deref().and_then(StateDir::of_address);
    let state = match state {
        Some(state) => state,
        // `start` writes the address after the server runs.
        None => listening_dir()?,
    };
    let pod = Pod::open(Config::load()?, state.clone(), &bundle, args).await?;
    let mut server = Server::new().add_listener(listener()?);
    server = server.set_accept_hook(RecordPeer);
    for name in SERVICES {
        server = server.register_service(service(name, &pod));
    }
    server.start().await.map_err(ShimError::Serve)?;
    pod.shut_down().await;
    // First: containerd calls `delete` when the connection is closed.
    let removed = state.remove();
    let _ = server.shutdown().await;
    removed
}

/// Returns the Task API under one of its names.
fn service(name: &str, pod: &Arc<Pod>) -> HashMap<String, Service> {
    let services = create_task(Arc::new(TaskService::new(Arc::clone(pod))));
    let renamed = services
        .into_values()
        .map(|service| (name.to_owned(), service));
    renamed.collect()
}

/// Returns the socket that `start` has bound.
fn inherited_socket() -> io::Result<UnixListener> {
    let socket = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listening_dir() -> Result<StateDir, ShimError> {
    let address = inherited_socket().and_then(|socket| socket.local_addr());
    let address = address.map_err(ShimError::file("find the socket at", "/dev/stdin"))?;
    let path = address
        .as_pathname()
        .map(|path| format!("unix://{}", path.display()));
    path.as_deref()
        .and_then(StateDir::of_address)
        .ok_or_else(|| ShimError::Usage("serve".to_owned()))
}

fn listener() -> Result<Listener, ShimError> {
    let listener = inherited_socket().and_then(Listener::try_from);
    listener.map_err(ShimError::file("listen on", "/dev/stdin"))
}
