use vmm_rest::wire::{BoxStatus, CreateBoxRequest, ErrorCode, Health, ListImagesQuery};
use vmm_rest::{Image, ImageTable, Limits};
use vmm_runtime::ImageStore;

use crate::common::boxes;
use crate::fixture::TestServer;

#[tokio::test]
async fn a_request_overrides_the_fields_of_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = r#"{
        "entrypoint": ["sh", "-c"],
        "command": ["echo $WHO $WHERE $(pwd) > $VMM_BOX_DIR/output; exit 0"],
        "env": {"WHO": "image", "WHERE": "here"}, "working_dir": "/usr",
        "cpus": 2, "memory_mib": 256, "pids": 32
    }"#;
    std::fs::write(folder.path().join("teller.json"), image).unwrap();
    let images = ImageTable::builtin().with_folder(folder.path()).unwrap();
    let service = TestServer::with_images(images, Limits::default()).await;
    let output = async |request: CreateBoxRequest| {
        let id = service.start_box(request).await.box_id;
        service.runtime.wait(&id).await.unwrap();
        std::fs::read_to_string(boxes::box_dir(&service.home, &id).join("output")).unwrap()
    };
    let plain = CreateBoxRequest::of("teller");
    assert_eq!(output(plain.clone()).await, "image here /usr\n");
    let overridden = plain.clone().env("WHO", "request").working_dir("/");
    assert_eq!(output(overridden).await, "request here /\n");
    let command = ["echo other > $VMM_BOX_DIR/output"];
    assert_eq!(output(plain.clone().cmd(command)).await, "other\n");
    let entrypoint = ["sh", "-c", "echo $1 > $VMM_BOX_DIR/output", "-"];
    let request = plain.clone().entrypoint(entrypoint).cmd(["entered"]);
    assert_eq!(output(request).await, "entered\n");

    let bx = service.client.create(&plain).await.unwrap();
    assert_eq!((bx.cpus, bx.memory_mib), (2, 256));
    let info = service.runtime.info(&bx.box_id).await.unwrap();
    assert_eq!(info.pids, Some(32));
    let bx = service.client.create(&plain.cpus(4)).await.unwrap();
    assert_eq!(
        (bx.image.as_str(), bx.cpus, bx.memory_mib),
        ("teller", 4, 256)
    );
    service.shut_down().await;
}

#[tokio::test]
async fn a_box_has_the_health_check_of_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = r#"{
        "command": ["sleep", "infinity"],
        "health": {"probe": {"command": {"command": ["true"]}}, "interval": 10}
    }"#;
    let file = folder.path().join("checked.json");
    std::fs::write(&file, image).unwrap();
    let images = ImageTable::builtin().with_folder(folder.path()).unwrap();
    let service = TestServer::with_images(images, Limits::default()).await;
    let running = service.start_box(CreateBoxRequest::of("checked")).await;
    assert_eq!(running.health, Some(Health::Starting));
    let healthy = service
        .wait_for(&running.box_id, |bx| bx.health == Some(Health::Healthy))
        .await;
    assert_eq!(healthy.status, BoxStatus::Running);
    service.shut_down().await;
}

#[tokio::test]
async fn an_unknown_engine_is_unsupported() {
    let mut image = Image::command(["true"]);
    image.engine = "antigravity".to_owned();
    let images = ImageTable::builtin().with("flying", image);
    let service = TestServer::with_images(images, Limits::default()).await;
    let bx = service
        .client
        .create(&CreateBoxRequest::of("flying"))
        .await
        .unwrap();
    let error = service.client.start(&bx.box_id).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unsupported), "{error}");
    assert!(error.to_string().contains("antigravity"), "{error}");
    service.shut_down().await;
}

#[tokio::test]
async fn images_that_are_built_while_the_server_runs_are_listed_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("images"));
    let images = ImageTable::builtin().with_store(store.clone());
    let service = TestServer::with_images(images, Limits::default()).await;
    let client = &service.client;
    let late = CreateBoxRequest::of("web:1");
    let error = client.create(&late).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::ImagePullFailed), "{error}");
    assert!(!client.image_exists("web:1").await.unwrap());
    let error = client.image("web:1").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound), "{error}");

    for name in ["web:1", "db"] {
        let staged = store.stage(name).unwrap();
        std::fs::write(staged.dir().join("file"), [1; 8192]).unwrap();
        staged
            .commit(&Image::command(["sleep", "infinity"]))
            .unwrap();
    }
    assert!(client.image_exists("web:1").await.unwrap());
    let web = client.image("web:1").await.unwrap();
    assert_eq!((&web.repository[..], &web.tag[..]), ("web", "1"));
    assert!(web.size_bytes.unwrap() >= 8192, "{web:?}");
    assert_eq!(client.image("db").await.unwrap().tag, "latest");
    let running = service.start_box(late).await;
    assert_eq!(running.image, "web:1");

    let mut query = ListImagesQuery::default().page_size(2);
    let page = client.images(&query).await.unwrap();
    let mut listed: Vec<_> = page.images.into_iter().map(|image| image.id).collect();
    query = query.page_token(page.next_page_token.unwrap());
    let page = client.images(&query).await.unwrap();
    assert_eq!(page.next_page_token, None);
    listed.extend(page.images.into_iter().map(|image| image.id));
    assert_eq!(listed, ["db", "idle", "web:1"]);

    store.remove("web:1").unwrap();
    assert!(!client.image_exists("web:1").await.unwrap());
    assert_eq!(
        client.inspect(&running.box_id).await.unwrap().status,
        BoxStatus::Running
    );
    service.shut_down().await;
}
