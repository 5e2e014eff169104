use std::collections::BTreeMap;

use super::*;
use crate::Ending;

fn host_frames() -> Vec<Frame<HostMessage>> {
    let mut exec = ExecSpec::new("exec-1", ["sh", "-c", "exit 3"]);
    exec.terminal = Some(TerminalSize { rows: 24, cols: 80 });
    vec![
        Frame::new(0, HostMessage::Hello { version: VERSION }),
        Frame::new(1, HostMessage::Exec(exec)),
        Frame::new(1, HostMessage::Stdin(vec![0; MAX_BODY])),
        Frame::new(1, HostMessage::Stdin(b"VM\0".to_vec())),
        Frame::new(1, HostMessage::CloseStdin),
        Frame::new(
            0,
            HostMessage::Call {
                request: serde_json::json!({"execute": "query-status"}),
            },
        ),
        Frame::new(1, HostMessage::signal(9)),
        Frame::new(
            1,
            HostMessage::Signal {
                signal: 9,
                only_command: true,
            },
        ),
        Frame::new(u32::MAX, HostMessage::Credit { bytes: u32::MAX }),
    ]
}

fn encode<M: Message>(frames: &[Frame<M>]) -> Vec<u8> {
    let mut wire = Vec::new();
    for frame in frames {
        frame.encode(&mut wire).unwrap();
    }
    wire
}

fn read_all<M: Message>(reader: &mut FrameReader) -> Vec<Frame<M>> {
    std::iter::from_fn(|| reader.next_frame().unwrap()).collect()
}

#[test]
fn frames_arrive_as_sent_whatever_the_sizes_of_the_reads() {
    let frames = host_frames();
    let wire = encode(&frames);
    for size in [1, 7, 4096, wire.len()] {
        let mut reader = FrameReader::new(Strictness::Strict);
        let mut received = Vec::new();
        for chunk in wire.chunks(size) {
            reader.push(chunk);
            received.extend(read_all::<HostMessage>(&mut reader));
        }
        assert_eq!(received, frames, "reads of {size} bytes");
    }
}

#[test]
fn a_payload_reports_output_and_the_end() {
    let frames = [
        Frame::new(3, PayloadMessage::Stdout(b"out".to_vec())),
        Frame::new(3, PayloadMessage::Stderr(Vec::new())),
        Frame::new(
            0,
            PayloadMessage::CallResult {
                result: serde_json::json!([null, {"running": true}]),
            },
        ),
        Frame::new(
            3,
            PayloadMessage::Ended {
                ending: Ending::Exited { code: 42 },
            },
        ),
        Frame::new(
            3,
            PayloadMessage::Exited {
                ending: Ending::Exited { code: 42 },
            },
        ),
    ];
    let mut reader = FrameReader::new(Strictness::Strict);
    reader.push(&encode(&frames));
    assert_eq!(read_all::<PayloadMessage>(&mut reader), frames);
}

#[test]
fn a_signal_to_a_process_group_is_sent_as_earlier_versions_sent_it() {
    let text = serde_json::to_string(&HostMessage::signal(15)).unwrap();
    assert_eq!(text, r#"{"type":"signal","signal":15}"#);
    let parsed: HostMessage = serde_json::from_str(&text).unwrap();
    assert_eq!(parsed, HostMessage::signal(15));
}

#[test]
fn a_serial_port_is_read_again_after_garbage() {
    let frames = host_frames();
    let mut wire = encode(&frames[..1]);
    // The rest of a frame whose begin was lost, which looks like a header at its end.
    wire.extend(b"SeaBIOS (version 1.16)\r\n\xffVM");
    wire.extend(encode(&frames[1..]));
    let mut reader = FrameReader::new(Strictness::Resynchronize);
    reader.push(&wire);
    assert_eq!(read_all::<HostMessage>(&mut reader), frames);
    assert_eq!(reader.skipped(), 27);

    let mut strict = FrameReader::new(Strictness::Strict);
    strict.push(&wire);
    assert!(strict.next_frame::<HostMessage>().is_ok());
    for _ in 0..2 {
        let error = strict.next_frame::<HostMessage>().unwrap_err();
        assert!(matches!(error, FrameError::Header), "{error}");
    }
}

#[test]
fn a_frame_that_this_version_does_not_know_is_an_error_and_the_next_one_is_read() {
    let unknown = Frame::new(1, PayloadMessage::Stdout(b"data of the other end".to_vec()));
    let mut wire = encode(&[unknown]);
    let next = Frame::new(0, HostMessage::Ping { token: 7 });
    wire.extend(encode(std::slice::from_ref(&next)));
    let mut reader = FrameReader::new(Strictness::Strict);
    reader.push(&wire);
    let error = reader.next_frame::<HostMessage>().unwrap_err();
    assert!(matches!(error, FrameError::UnknownType(2)), "{error}");
    assert_eq!(reader.next_frame().unwrap(), Some(next));
}

#[test]
fn a_body_that_is_too_long_is_not_sent() {
    let mut wire = b"before".to_vec();
    let frame = Frame::new(1, HostMessage::Stdin(vec![0; MAX_BODY + 1]));
    let error = frame.encode(&mut wire).unwrap_err();
    assert!(matches!(error, FrameError::TooLong(length) if length == MAX_BODY + 1));
    assert_eq!(wire, b"before");
}

#[test]
fn a_window_stops_a_sender_until_credit_arrives() {
    let mut window = Window::new();
    let all = INITIAL_CREDIT as usize;
    assert_eq!(window.take(all - 1), all - 1);
    assert_eq!(window.take(100), 1);
    assert_eq!(window.take(100), 0);
    window.grant(10);
    window.grant(u32::MAX);
    assert_eq!(window.bytes(), u32::MAX as usize);
}

#[test]
fn each_stream_is_first_in_turn() {
    let streams = BTreeMap::from([(3, ()), (5, ()), (9, ())]);
    let mut turns = Turns::default();
    assert_eq!(turns.order(&streams), [3, 5, 9]);
    assert_eq!(turns.order(&streams), [5, 9, 3]);
    // Stream 9, the next one, has ended.
    let streams = BTreeMap::from([(3, ()), (5, ())]);
    assert_eq!(turns.order(&streams), [3, 5]);
    assert!(turns.order(&BTreeMap::<u32, ()>::new()).is_empty());
}

#[test]
fn the_debug_output_of_a_command_has_no_secrets() {
    let mut spec = ExecSpec::new("exec-1", ["login", "s3cret"]);
    spec.env.insert("TOKEN".to_owned(), "s3cret".to_owned());
    let shown = format!("{:?}", HostMessage::Exec(spec));
    assert!(shown.contains("login"), "{shown}");
    assert!(!shown.contains("s3cret"), "{shown}");
}
