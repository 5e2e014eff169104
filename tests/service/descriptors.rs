use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::common::DEADLINE;
use crate::common::logged::Logged;
use crate::common::own_process::{block_on, in_own_process, use_up_descriptors};
use crate::fixture::{QUESTION, Service};

#[test]
fn a_server_without_descriptors_says_so_once_and_goes_on_when_there_are_some() {
    let test =
        "descriptors::a_server_without_descriptors_says_so_once_and_goes_on_when_there_are_some";
    in_own_process(test, || {
        let logged = Logged::everywhere();
        block_on(async {
            let service = Service::start().await;
            let mut known = service.saying("").await;
            assert_eq!(failures(&mut known).await, 0);
            let mut hoard = use_up_descriptors();
            // For the client, and so none for the server.
            hoard.pop();
            let mut waiting = service.saying(QUESTION).await;
            let several = async { while failures(&mut known).await < 3 {} };
            timeout(DEADLINE, several).await.unwrap();
            assert_eq!(logged.errors(), 1);

            drop(hoard);
            let mut answer = [0; "HTTP/1.1 200".len()];
            let answered = timeout(DEADLINE, waiting.read_exact(&mut answer));
            answered.await.unwrap().unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
            assert_eq!(logged.errors(), 1);
            service.end().await;
        });
    });
}

/// As the server counts them.
async fn failures(stream: &mut UnixStream) -> u64 {
    let question = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(question).await.unwrap();
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
