//! nginx serves TLS 1.3; its private key is in our module.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tde_tests::{Process, command_output};

use crate::tools::Desk;

/// Every handshake is a signature in a worker process, which was forked after the key had been found.
#[test]
fn nginx_serves_tls_1_3_under_load() {
    let desk = Desk::new();
    desk.self_signed("EC:prime256v1", "tls", "0c", "localhost");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let conf = format!(
        "daemon off; worker_processes 2; pid nginx.pid; error_log stderr; ssl_engine pkcs11;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; \
         scgi_temp_path t5;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_certificate tls.pem;\n\
         ssl_certificate_key 'engine:pkcs11:pkcs11:token=tde;object=tls;type=private';\n\
         location / {{ return 200 served; }} }} }}\n",
    );
    fs::write(desk.path("nginx.conf"), conf).unwrap();
    let mut command = desk.command("/usr/sbin/nginx");
    command.env("OPENSSL_CONF", desk.engine_conf("")).arg("-p").arg(desk.scratch.path());
    command.args(["-e", "stderr", "-c"]).arg(desk.path("nginx.conf"));
    // Workers run as root where the tests do: nobody could not read the store.
    if rustix::process::getuid().is_root() {
        command.args(["-g", "user root;"]);
    }
    let mut nginx =
        command.stdout(Stdio::null()).stderr(fs::File::create(desk.path("log")).unwrap()).spawn().unwrap();
    let log = || fs::read_to_string(desk.path("log")).unwrap();
    let begin = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            begin.elapsed() < Duration::from_secs(20) && nginx.try_wait().unwrap().is_none(),
            "{}",
            log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let load = desk.path("load.py");
    fs::write(&load, LOAD).unwrap();
    let (connections, threads) = if tde_tests::soak() { ("2000", "16") } else { ("100", "4") };
    let mut client = Command::new("/usr/bin/python3");
    client.arg(load).arg(port.to_string()).arg(desk.path("tls.pem")).args([connections, threads]);
    let served = command_output(&mut client);
    assert_eq!(
        served.trim(),
        format!("{} TLSv1.3", connections.parse::<u32>().unwrap() * threads.parse::<u32>().unwrap())
    );
    // The master loads the key anew and forks new workers; old ones end.
    let master = Process::find(nginx.id() as i32).unwrap();
    master.signal(Signal::HUP);
    let again = command_output(&mut client);
    assert_eq!(again, served);
    master.signal(Signal::QUIT);
    assert!(nginx.wait().unwrap().success(), "{}", log());
    assert!(!log().contains("[alert]") && !log().contains("[crit]"), "{}", log());
}

/// Full handshakes with the certificate checked: `load.py PORT CERTIFICATE CONNECTIONS THREADS`.
const LOAD: &str = "
import socket, ssl, sys, threading
port, certificate, connections, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
served, versions = [], set()
def run():
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    for _ in range(connections):
        with socket.create_connection(('127.0.0.1', port), 20) as plain, context.wrap_socket(plain) as tls:
            tls.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
            answer = b''
            while data := tls.recv(4096):
                answer += data
            assert answer.endswith(b'served'), answer
            versions.add(tls.version())
            served.append(1)
workers = [threading.Thread(target=run) for _ in range(threads)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
print(len(served), *versions)
";
