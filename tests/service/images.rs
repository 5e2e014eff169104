use vmm_rest::wire::{BoxStatus, CreateBoxRequest, ErrorCode, Health};
use vmm_rest::{Image, ImageTable, Limits};

use crate::common::boxes;
use crate::fixture::Service;

#[tokio::test]
async fn a_box_is_what_its_image_says_unless_the_request_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let image = r#"{
        "entrypoint": ["sh", "-c"],
        "command": ["echo $WHO $WHERE $(pwd) > $VMM_BOX_DIR/said; exit 0"],
        "env": {"WHO": "image", "WHERE": "here"}, "working_dir": "/usr",
        "cpus": 2, "memory_mib": 256, "pids": 32
    }"#;
    std::fs::write(folder.path().join("teller.json"), image).unwrap();
    let images = ImageTable::builtin().with_folder(folder.path()).unwrap();
    let service = Service::of(images, Limits::default()).await;
    let said = async |request: CreateBoxRequest| {
        let id = service.started(request).await.box_id;
        service.runtime.wait(&id).await.unwrap();
        std::fs::read_to_string(boxes::dir_of(&service.home, &id).join("said")).unwrap()
    };
    let plain = CreateBoxRequest::of("teller");
    assert_eq!(said(plain.clone()).await, "image here /usr\n");
    let other = plain.clone().env("WHO", "request").working_dir("/");
    assert_eq!(said(other).await, "request here /\n");
    let command = ["echo other > $VMM_BOX_DIR/said"];
    assert_eq!(said(plain.clone().cmd(command)).await, "other\n");
    let entrypoint = ["sh", "-c", "echo $1 > $VMM_BOX_DIR/said", "-"];
    let entered = plain.clone().entrypoint(entrypoint).cmd(["entered"]);
    assert_eq!(said(entered).await, "entered\n");

    let made = service.client.create(&plain).await.unwrap();
    assert_eq!((made.cpus, made.memory_mib), (2, 256));
    let info = service.runtime.info(&made.box_id).await.unwrap();
    assert_eq!(info.pids, Some(32));
    let made = service.client.create(&plain.cpus(4)).await.unwrap();
    assert_eq!(
        (made.image.as_str(), made.cpus, made.memory_mib),
        ("teller", 4, 256)
    );
    service.end().await;
}

#[tokio::test]
async fn an_images_health_check_is_the_boxs() {
    let folder = tempfile::tempdir().unwrap();
    let image = r#"{
        "command": ["sleep", "infinity"],
        "health": {"probe": {"command": {"command": ["true"]}}, "interval": 10}
    }"#;
    let file = folder.path().join("checked.json");
    std::fs::write(&file, image).unwrap();
    let images = ImageTable::builtin().with_folder(folder.path()).unwrap();
    let service = Service::of(images, Limits::default()).await;
    let running = service.started(CreateBoxRequest::of("checked")).await;
    assert_eq!(running.health, Some(Health::Starting));
    let healthy = service
        .until(&running.box_id, |found| {
            found.health == Some(Health::Healthy)
        })
        .await;
    assert_eq!(healthy.status, BoxStatus::Running);
    service.end().await;
}

#[tokio::test]
async fn an_engine_that_no_shim_has_is_unsupported() {
    let mut image = Image::command(["true"]);
    image.engine = "antigravity".to_owned();
    let images = ImageTable::builtin().with("flying", image);
    let service = Service::of(images, Limits::default()).await;
    let made = service
        .client
        .create(&CreateBoxRequest::of("flying"))
        .await
        .unwrap();
    let refused = service.client.start(&made.box_id).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Unsupported), "{refused}");
    assert!(refused.to_string().contains("antigravity"), "{refused}");
    service.end().await;
}
