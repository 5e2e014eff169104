//! A program whose `main` starts the threads of tokio before it calls `run_if_shim` is told so by its
//! first start. This program is one; it has no test harness.

mod common;

use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, RuntimeOptions, VmmRuntime, with_causes};

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    vmm_shim::run_if_shim();
    let home = PerTestBoxHome::new();
    let options = RuntimeOptions::new(home.path());
    let runtime = VmmRuntime::open(options).await.unwrap();
    let id = runtime.create(common::boxes::sleeping()).await.unwrap().id;
    let error = runtime.start(&id).await.unwrap_err();
    let message = with_causes(&error);
    assert!(message.contains("#[tokio::main]"), "{message}");
    assert!(
        message.contains("fn main() { vmm_shim::run_if_shim();"),
        "{message}"
    );
    let info = runtime.info(&id).await.unwrap();
    assert_eq!((info.status, info.pid), (BoxStatus::Failed, None));
    println!("test a_shim_with_the_threads_of_tokio_refuses_to_start ... ok");
}
