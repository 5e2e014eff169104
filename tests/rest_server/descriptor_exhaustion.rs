use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::common::DEADLINE;
use crate::common::log_counter::LogCounter;
use crate::common::own_process::{block_on, exhaust_descriptors, in_own_process};
use crate::fixture::{HEALTH_REQUEST, TestServer};

#[test]
fn a_server_without_descriptors_logs_once_and_recovers() {
    let test = "descriptor_exhaustion::a_server_without_descriptors_logs_once_and_recovers";
    in_own_process(test, || {
        let log = LogCounter::install();
        block_on(async {
            let service = TestServer::start().await;
            let mut open = service.send_raw("").await;
            assert_eq!(accept_failures(&mut open).await, 0);
            let mut files = exhaust_descriptors();
            // One descriptor for the client, and none for the server.
            files.pop();
            let mut waiting = service.send_raw(HEALTH_REQUEST).await;
            let several = async { while accept_failures(&mut open).await < 3 {} };
            timeout(DEADLINE, several).await.unwrap();
            assert_eq!(log.errors(), 1);

            drop(files);
            let mut response = [0; "HTTP/1.1 200".len()];
            let read = timeout(DEADLINE, waiting.read_exact(&mut response));
            read.await.unwrap().unwrap();
            assert_eq!(&response, b"HTTP/1.1 200");
            assert_eq!(log.errors(), 1);
            service.shut_down().await;
        });
    });
}

/// Returns the number of failed accepts that the server counts.
async fn accept_failures(stream: &mut UnixStream) -> u64 {
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    while !text.ends_with("# EOF\n") {
        let mut piece = [0; 4096];
        let length = timeout(DEADLINE, stream.read(&mut piece)).await.unwrap();
        text += std::str::from_utf8(&piece[..length.unwrap()]).unwrap();
    }
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("vmm_rest_accept_failures_total "));
    count.unwrap().parse().unwrap()
}
