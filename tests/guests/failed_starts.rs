//! Guests that cannot be created, started or booted: the error has the cause, and nothing is left.

use std::fs;

use serde_json::json;
use vmm_protocol::FILES;
use vmm_protocol::frames::{Frame, PayloadMessage, VERSION};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, BoxStatus, Ending, FailureKind, GuestEvent, RuntimeError, with_causes};

use crate::guest::{GuestFiles, console, open_runtime, run, spec};

#[tokio::test]
async fn options_that_the_engine_does_not_know_are_rejected_at_create() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut spec = BoxSpec::new::<String>([]);
    spec.payload.engine = "qemu".to_owned();
    spec.payload
        .options
        .insert("kernel".to_owned(), json!("/k"));
    spec.payload
        .options
        .insert("kernal".to_owned(), json!("/k"));
    let error = runtime.create(spec).await.unwrap_err();
    assert!(
        matches!(error, RuntimeError::InvalidPayload { .. }),
        "{error:?}"
    );
    let message = with_causes(&error);
    assert!(message.contains("unknown field `kernal`"), "{message}");
    assert!(runtime.list().await.is_empty());
}

#[tokio::test]
async fn a_missing_kernel_fails_the_start_with_its_path() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut guest = files.guest("true");
    guest.kernel = files.path("no-kernel");
    let bx = runtime.create(spec(&guest)).await.unwrap();
    let error = with_causes(&runtime.start(&bx.id).await.unwrap_err());
    assert!(
        error.contains(&guest.kernel.display().to_string()),
        "{error}"
    );
    let failed = runtime.info(&bx.id).await.unwrap();
    let Some(Ending::Failed { kind, .. }) = failed.ending else {
        panic!("{failed:?}");
    };
    assert_eq!(
        (failed.status, kind),
        (BoxStatus::Failed, FailureKind::Spec)
    );
    assert_eq!((failed.pid, failed.payload_pid), (None, None));
    for name in [FILES.control, FILES.notify, FILES.payload_pid, "overlays"] {
        assert!(!failed.dir.join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn a_kernel_that_qemu_refuses_fails_the_start_with_its_message() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut guest = files.guest("true");
    guest.kernel = files.path("empty-kernel");
    fs::write(&guest.kernel, "").unwrap();
    let bx = runtime.create(spec(&guest)).await.unwrap();
    runtime.start(&bx.id).await.unwrap_err();
    let failed = runtime.info(&bx.id).await.unwrap();
    let exit = Box::new(Ending::Exited { code: 1 });
    assert_eq!(failed.ending, Some(Ending::EndedEarly { exit }));
    let output = failed.last_output.unwrap();
    assert!(output.contains("could not load kernel"), "{output}");
}

#[tokio::test]
async fn memory_beyond_that_of_the_host_fails_the_start() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = spec(&files.guest("true")).memory_mib(1 << 20);
    let bx = runtime.create(spec).await.unwrap();
    let error = with_causes(&runtime.start(&bx.id).await.unwrap_err());
    let failed = runtime.info(&bx.id).await.unwrap();
    let exit = Box::new(Ending::Exited { code: 1 });
    assert_eq!(failed.ending, Some(Ending::EndedEarly { exit }));
    // QEMU has printed it.
    for text in [error, failed.error.unwrap(), failed.last_output.unwrap()] {
        assert!(text.contains("Cannot allocate memory"), "{text}");
    }
    assert_eq!((failed.pid, failed.payload_pid), (None, None));
}

#[tokio::test]
async fn a_corrupt_initrd_is_a_failure_whose_cause_is_in_the_console() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut guest = files.guest("true");
    let initrd = files.path("corrupt");
    fs::write(&initrd, "not an archive").unwrap();
    guest.initrd = Some(initrd);
    let ended = run(&runtime, &guest).await;
    // The panic comes before a module could report it.
    let event = GuestEvent::Reset;
    assert_eq!(ended.ending, Some(Ending::Guest { event }), "{ended:?}");
    assert_eq!(ended.status, BoxStatus::Failed);
    let error = ended.error.as_ref().unwrap();
    assert!(error.contains("see console.log"), "{error}");
    let console = console(&ended);
    assert!(console.contains("Kernel panic"), "{console}");
}

#[tokio::test]
async fn a_corrupt_initrd_of_a_guest_with_an_agent_fails_the_start_with_the_panic() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut guest = files.guest_with_agent();
    // The first half of an archive.
    let initrd = fs::read(guest.initrd.unwrap()).unwrap();
    let corrupt = files.path("corrupt");
    fs::write(&corrupt, &initrd[..initrd.len() / 2]).unwrap();
    guest.initrd = Some(corrupt);
    let bx = runtime.create(spec(&guest)).await.unwrap();
    let error = with_causes(&runtime.start(&bx.id).await.unwrap_err());
    let failed = runtime.info(&bx.id).await.unwrap();
    let event = GuestEvent::Reset;
    let exit = Box::new(Ending::Guest { event });
    assert_eq!(failed.ending, Some(Ending::EndedEarly { exit }));
    for text in [error, failed.error.unwrap(), failed.last_output.unwrap()] {
        assert!(text.contains("Kernel panic"), "{text}");
    }
    assert_eq!((failed.pid, failed.payload_pid), (None, None));
}

#[tokio::test]
async fn an_agent_of_another_version_fails_the_start_and_leaves_nothing() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let ready = PayloadMessage::Ready {
        version: VERSION + 1,
        boot: Vec::new(),
    };
    let mut frame = Vec::new();
    Frame::new(0, ready).encode(&mut frame).unwrap();
    let frame: String = frame.iter().map(|byte| format!("\\{byte:03o}")).collect();
    // A program that says only that it is ready.
    let guest = files.guest_with_agent_after(&format!(
        "busybox mount -t devtmpfs dev /dev
         while read -r module; do busybox insmod /modules/$module; done </modules/order
         until [ -c /dev/vport0p1 ]; do busybox usleep 10000; done
         busybox printf '{frame}' >/dev/vport0p1
         busybox sleep 1000"
    ));
    let bx = runtime.create(spec(&guest)).await.unwrap();
    let error = with_causes(&runtime.start(&bx.id).await.unwrap_err());
    let other = format!("version {}", VERSION + 1);
    assert!(
        error.contains(&other) && error.contains("build the image again"),
        "{error}"
    );
    let failed = runtime.info(&bx.id).await.unwrap();
    let Some(Ending::Failed { kind, .. }) = failed.ending else {
        panic!("{failed:?}");
    };
    assert_eq!(
        (failed.status, kind),
        (BoxStatus::Failed, FailureKind::Engine)
    );
    assert_eq!((failed.pid, failed.payload_pid), (None, None));
}
