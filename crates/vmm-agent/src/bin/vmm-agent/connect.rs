use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;

/// Runs the command `vmm-agent connect PORT`: connects stdin and stdout to a TCP port of the guest's loopback interface. Ends when
/// the server at that port has closed its side.
pub(crate) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let port = args
        .next()
        .and_then(|port| port.to_string_lossy().parse().ok());
    let Some(port) = port else {
        eprintln!("vmm-agent: usage: vmm-agent connect PORT");
        return ExitCode::FAILURE;
    };
    match connect(port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm-agent: port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn connect(port: u16) -> io::Result<()> {
    let addresses = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    let mut server = TcpStream::connect(&addresses[..])?;
    let mut client_side = server.try_clone()?;
    // Without the buffer of `io::stdout`, which ends at each line.
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut client_side);
        let _ = client_side.shutdown(Shutdown::Write);
    });
    io::copy(&mut server, &mut stdout).map(drop)
}
