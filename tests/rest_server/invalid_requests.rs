use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::fixture::{Reply, TestServer, read_to_end};

/// Sends `request` and returns the response, even if the server does not read all of the request.
async fn exchange(service: &TestServer, request: &str) -> String {
    let mut stream = service.send_raw("").await;
    let _ = stream.write_all(request.as_bytes()).await;
    read_to_end(&mut stream).await
}

#[tokio::test]
async fn malformed_requests_get_the_error_model_and_create_no_box() {
    let service = TestServer::start().await;
    let post = |body: &'static str| service.send(Method::POST, "/v1/boxes", body);
    for body in [
        "{",
        "[]",
        "null",
        "3",
        "\"x\"",
        r#"{"image": 5}"#,
        r#"{"cpus": -1}"#,
    ] {
        let reply = post(body).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_argument"),
            "{body}"
        );
        assert_eq!(reply.json()["error"]["type"], "InvalidArgumentError");
    }
    for (body, named) in [
        (r#"{"nmae": "x"}"#, "nmae"),
        (r#"{"cpus": 0}"#, "cpus"),
        (r#"{"cpus": 33}"#, "cpus"),
        (r#"{"memory_mib": 127}"#, "memory_mib"),
        (r#"{"name": ""}"#, "name"),
        (r#"{"name": "../x"}"#, "../x"),
        (r#"{"env": {"": "x"}}"#, "env"),
        (r#"{"env": {"A=B": "x"}}"#, "A=B"),
        (r#"{"env": {"A": "\u0000"}}"#, "env"),
        (r#"{"cmd": []}"#, "cmd"),
        (r#"{"cmd": [""]}"#, "cmd"),
        (r#"{"cmd": ["a\u0000b"]}"#, "cmd"),
        (r#"{"working_dir": "relative"}"#, "working_dir"),
    ] {
        let reply = post(body).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_argument"),
            "{body}"
        );
        assert!(
            reply.message().contains(named),
            "{body}: {}",
            reply.message()
        );
    }
    assert!(service.runtime.list().await.is_empty());
    service.shut_down().await;
}

#[tokio::test]
async fn unsupported_fields_and_paths_are_named() {
    let service = TestServer::start().await;
    for (field, value) in [
        (
            "advanced.capabilities.add",
            json!({"advanced": {"capabilities": {"add": ["ALL"]}}}),
        ),
        (
            "advanced.capabilities.drop",
            json!({"advanced": {"capabilities": {"drop": ["ALL"]}}}),
        ),
        ("security", json!({"security": "maximum"})),
        ("rootfs_path", json!({"rootfs_path": "/rootfs"})),
        ("disk_size_gb", json!({"disk_size_gb": 1})),
        ("user", json!({"user": "1000"})),
        (
            "volumes",
            json!({"volumes": [{"host_path": "/a", "guest_path": "/b"}]}),
        ),
        ("secrets", json!({"secrets": [{"name": "a", "value": "b"}]})),
        ("network.mode", json!({"network": {"mode": "disabled"}})),
        (
            "network.allow_net",
            json!({"network": {"mode": "enabled", "allow_net": ["a"]}}),
        ),
        ("auto_pause", json!({"auto_pause": 60})),
        ("auto_delete", json!({"auto_delete": 60})),
    ] {
        let reply = service
            .send(Method::POST, "/v1/boxes", &value.to_string())
            .await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "unsupported"),
            "{value}"
        );
        assert!(
            reply.message().contains(field),
            "{field}: {}",
            reply.message()
        );
    }
    for (method, path) in [
        (Method::GET, "/v1/boxes/x/snapshots"),
        (Method::POST, "/v1/boxes/x/network/tunnel?port=1"),
        (Method::POST, "/v1/boxes/import"),
        (Method::POST, "/v1/boxes/x/clone"),
        (Method::POST, "/v1/boxes/x/export"),
        (Method::POST, "/v1/images/pull"),
    ] {
        let reply = service.send(method, path, "").await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "unsupported"),
            "{path}"
        );
    }
    service.shut_down().await;
}

#[tokio::test]
async fn an_unknown_image_is_reported_with_the_known_ones() {
    let service = TestServer::start().await;
    let reply = service
        .send(Method::POST, "/v1/boxes", r#"{"image": "alpine:latest"}"#)
        .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (422, "image_pull_failed")
    );
    assert!(reply.message().contains("idle"), "{}", reply.message());
    service.shut_down().await;
}

#[tokio::test]
async fn unknown_boxes_paths_and_methods_are_reported() {
    let service = TestServer::start().await;
    for (method, path) in [
        (Method::GET, "/v1/boxes/missing"),
        (Method::DELETE, "/v1/boxes/missing?force=true"),
        (Method::POST, "/v1/boxes/missing/start"),
        (Method::POST, "/v1/boxes/missing/stop"),
        (Method::GET, "/v1/boxes/missing/metrics"),
        (Method::GET, "/v1/boxes/%00"),
        (Method::GET, "/v1/boxes/a%2Fb"),
        (Method::GET, "/"),
        (Method::GET, "/v1"),
        (Method::GET, "/v2/boxes"),
        (Method::GET, "/v1/boxes/"),
    ] {
        let reply = service.send(method, path, "").await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (404, "not_found"),
            "{path}"
        );
    }
    let head = service.send(Method::HEAD, "/v1/boxes/missing", "").await;
    assert_eq!((head.status, head.text.as_str()), (404, ""));
    let wrong = service.send(Method::PATCH, "/v1/boxes", "").await;
    assert_eq!(
        (wrong.status, wrong.code().as_str()),
        (405, "invalid_argument")
    );
    assert!(wrong.headers["allow"].to_str().unwrap().contains("POST"));
    for query in ["force=maybe", "force=1", "force=true&force=true"] {
        let target = format!("/v1/boxes/missing?{query}");
        let reply = service.send(Method::DELETE, &target, "").await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_argument"),
            "{query}"
        );
    }
    let not_utf8 = service.send(Method::GET, "/v1/boxes/%ff", "").await;
    assert_eq!(
        (not_utf8.status, not_utf8.code().as_str()),
        (400, "invalid_argument")
    );
    service.shut_down().await;
}

#[tokio::test]
async fn bodies_that_are_too_long_or_not_json_are_rejected() {
    let service = TestServer::start().await;
    let head = "POST /v1/boxes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                content-type: application/json\r\n";
    let long = format!(r#"{{"image": "{}"}}"#, "x".repeat(10 << 20));
    let long = format!("{head}content-length: {}\r\n\r\n{long}", long.len());
    let chunks = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(17);
    let long_chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}");
    for request in [long, long_chunked] {
        let response = exchange(&service, &request).await;
        assert!(response.starts_with("HTTP/1.1 413"), "{response}");
        assert!(
            response.contains(r#""code":"invalid_argument""#),
            "{response}"
        );
    }
    let form = service
        .http
        .post("http://localhost/v1/boxes")
        .body("image=idle");
    let form = Reply::of(form).await;
    assert_eq!(
        (form.status, form.code().as_str()),
        (415, "invalid_argument")
    );
    assert!(service.client.all_boxes().await.unwrap().is_empty());
    service.shut_down().await;
}

#[tokio::test]
async fn an_ignored_body_must_be_short() {
    let service = TestServer::start().await;
    for (method, target, status) in [
        (Method::GET, "/v1/boxes", 200),
        (Method::GET, "/healthz", 200),
        (Method::DELETE, "/v1/boxes/missing", 404),
    ] {
        let reply = service.send(method.clone(), target, "{}").await;
        assert_eq!(reply.status, status, "{method} {target}");
        let long = "x".repeat(2000);
        // The server may close the connection when it has not read all.
        let last = [("connection", "close")];
        let reply = service
            .send_with(method.clone(), target, &long, &last)
            .await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (413, "invalid_argument"),
            "{method} {target}"
        );
    }
    service.shut_down().await;
}

#[tokio::test]
async fn invalid_http_and_long_headers_are_rejected() {
    let service = TestServer::start().await;
    for text in [
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "hello\r\n\r\n",
    ] {
        let response = exchange(&service, text).await;
        assert!(response.starts_with("HTTP/1.1 400"), "{text:?}: {response}");
    }
    let value = "y".repeat(1 << 20);
    let head = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {value}\r\n\r\n");
    let response = exchange(&service, &head).await;
    assert!(response.starts_with("HTTP/1.1 431"), "{response}");
    service.client.config().await.unwrap();
    service.shut_down().await;
}

#[tokio::test]
async fn every_response_has_a_request_id() {
    let service = TestServer::start().await;
    for path in ["/v1/config", "/v1/boxes/missing", "/nowhere", "/healthz"] {
        let reply = service.send(Method::GET, path, "").await;
        let id = reply.headers["x-request-id"].to_str().unwrap().to_owned();
        assert!(id.starts_with("req_"), "{id}");
        if reply.status == 404 {
            assert_eq!(reply.json()["error"]["request_id"], id);
        }
    }
    let headers = [("x-request-id", "mine-1")];
    let reply = service
        .send_with(Method::GET, "/nowhere", "", &headers)
        .await;
    assert_eq!(reply.headers["x-request-id"], "mine-1");
    assert_eq!(reply.json()["error"]["request_id"], "mine-1");
    let long = "x".repeat(200);
    for invalid in ["with space", long.as_str()] {
        let reply = service
            .send_with(Method::GET, "/nowhere", "", &[("x-request-id", invalid)])
            .await;
        assert_ne!(reply.headers["x-request-id"], invalid);
    }
    service.shut_down().await;
}
