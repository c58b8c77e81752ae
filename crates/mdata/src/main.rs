//! `mdata-get`, `mdata-put`, `mdata-delete` and `mdata-list`: one small static program under four names.
//!
//! It runs inside guests, often before anything else does, so it needs no other file than itself and the socket. The
//! machine's agent may be restarting at any moment: a missing or refusing socket is tried again until
//! [`PATIENCE`] is over, and a question whose answer never came is asked once more on a new connection.
//!
//! Exit codes: 0 done, 1 no such key, 2 failed, 3 used wrongly.

use std::{
    env,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use mdata::{ANSWER_MAX_BYTES, Answer, Command, VALUE_MAX_BYTES, client, key_is_valid};

/// Where the socket is: in our zones, and in brands that keep their machine's files under `/native`.
const SOCKETS: [&str; 2] = ["/.zonecontrol/metadata.sock", "/native/.zonecontrol/metadata.sock"];

/// Environment variable that names another socket.
const SOCKET_VARIABLE: &str = "MDATA_SOCKET";

/// How long an agent may take to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two tries; a restarting agent binds its sockets within a second.
const PAUSE: Duration = Duration::from_millis(200);

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The one request id of a connection that asks once.
const REQUEST_ID: &str = "6e65736f";

const NOT_FOUND: u8 = 1;
const FAILED: u8 = 2;
const USAGE: u8 = 3;

fn main() -> ExitCode {
    let mut arguments = env::args();
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or("mdata").to_owned();
    let mut rest: Vec<String> = arguments.collect();
    // `mdata get key` is the same as `mdata-get key`.
    let verb = match name.strip_prefix("mdata-") {
        Some(verb) => verb.to_owned(),
        None if rest.is_empty() => String::new(),
        None => rest.remove(0),
    };
    let command = match command_of(&verb, &rest) {
        Ok(command) => command,
        Err(complaint) => return fail(USAGE, &complaint),
    };
    match ask(&command) {
        Ok(answer) => finish(&command, answer),
        Err(error) => fail(FAILED, &error.to_string()),
    }
}

fn command_of(verb: &str, arguments: &[String]) -> Result<Command, String> {
    let command = match (verb, arguments) {
        ("get", [key]) => Command::Get(key.clone()),
        ("list", []) => Command::Keys,
        ("delete", [key]) => Command::Delete(key.clone()),
        ("put", [key, value]) => Command::Put { key: key.clone(), value: value.clone() },
        ("put", [key]) if !io::stdin().is_terminal() => Command::Put { key: key.clone(), value: value_from_stdin()? },
        _ => {
            return Err("usage: mdata-get <key> | mdata-put <key> [<value>] (or the value on standard input) | \
                 mdata-delete <key> | mdata-list"
                .to_owned());
        }
    };
    if let Command::Get(key) | Command::Delete(key) | Command::Put { key, .. } = &command
        && !key_is_valid(key)
    {
        return Err("a key has 1 to 256 bytes and no control characters".to_owned());
    }
    match &command {
        Command::Put { value, .. } if value.len() > VALUE_MAX_BYTES => Err("a value has at most 128 KiB".to_owned()),
        _ => Ok(command),
    }
}

fn value_from_stdin() -> Result<String, String> {
    let mut bytes = Vec::new();
    let limit = VALUE_MAX_BYTES as u64 + 1;
    io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(|error| format!("standard input: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "the value on standard input is not UTF-8".to_owned())
}

fn finish(command: &Command, answer: Answer) -> ExitCode {
    match answer {
        Answer::Success(value) => {
            let silent = matches!(command, Command::Put { .. } | Command::Delete(_));
            let value = value.unwrap_or_default();
            // An empty list has no line, an empty value has one.
            if silent || (*command == Command::Keys && value.is_empty()) {
                return ExitCode::SUCCESS;
            }
            match writeln!(io::stdout().lock(), "{value}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(FAILED, &format!("standard output: {error}")),
            }
        }
        Answer::NotFound => {
            let key = match command {
                Command::Get(key) | Command::Delete(key) | Command::Put { key, .. } => key,
                Command::Keys => "",
            };
            fail(NOT_FOUND, &format!("no metadata for '{key}'"))
        }
        Answer::Failure(why) if why.is_empty() => fail(FAILED, "the machine refused"),
        Answer::Failure(why) => fail(FAILED, &why),
    }
}

fn fail(code: u8, complaint: &str) -> ExitCode {
    // Nothing is left to do about a closed standard error.
    let _ = writeln!(io::stderr().lock(), "{complaint}");
    ExitCode::from(code)
}

/// Asks until an answer comes or [`PATIENCE`] is over.
fn ask(command: &Command) -> io::Result<Answer> {
    let begun = Instant::now();
    loop {
        match connect().and_then(|stream| converse(stream, command)) {
            Ok(answer) => return Ok(answer),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(error) if begun.elapsed() >= PATIENCE => {
                return Err(io::Error::new(error.kind(), format!("no metadata service: {error}")));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn connect() -> io::Result<UnixStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let named = env::var(SOCKET_VARIABLE).ok();
    let paths: Vec<&str> = match &named {
        Some(path) => vec![path],
        None => SOCKETS.to_vec(),
    };
    for path in paths {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
                return Ok(stream);
            }
            // A refusing socket says more than a missing one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn converse(mut stream: UnixStream, command: &Command) -> io::Result<Answer> {
    let mut reader = BufReader::new(stream.try_clone()?);
    stream.write_all(client::NEGOTIATE.as_bytes())?;
    if read_line(&mut reader)? == "V2_OK" {
        stream.write_all(client::ask_v2(REQUEST_ID, command).as_bytes())?;
        return client::answer_v2(REQUEST_ID, &read_line(&mut reader)?).map_err(io::Error::other);
    }
    let question = client::ask_v1(command).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "this machine's metadata service is too old to store or delete")
    })?;
    stream.write_all(question.as_bytes())?;
    let mut answer = client::AnswerV1::default();
    loop {
        if let Some(answer) = answer.line(&read_line(&mut reader)?).map_err(io::Error::other)? {
            return Ok(answer);
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    reader.take(ANSWER_MAX_BYTES as u64).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    String::from_utf8(line).map_err(|_| io::Error::other("the answer is not UTF-8"))
}
