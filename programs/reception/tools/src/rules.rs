//! tcprules(1), `tcprules CDB TMP`: the rules on standard input become CDB. tcprulescheck(1), `tcprulescheck CDB`: what CDB says of the client
//! in TCPREMOTEIP, TCPREMOTEHOST and TCPREMOTEINFO.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use tool::replace::{self, Readers};
use tool::{End, Name, input};
use users::rules::{Client, DATA_LEN_MAX, Rule, compile, find};
use wire::cdb;

/// Makes a database.
///
/// # Errors
/// A line that is no rule (permanent), or a file that cannot be read or written; CDB is as it was.
pub fn tcprules(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("tcprules");
    let [path, tmp, ..] = args else { return Err(ME.usage("rules.cdb rules.tmp")) };
    let text = input::table().map_err(|error| ME.system("unable to read input", &error))?;
    let mut writer = cdb::Writer::new();
    for line in text.split_inclusive(|b| *b == b'\n') {
        let records = compile(line).map_err(|line| ME.permanent([b"unable to parse this line: ", &line[..]].concat()))?;
        records.iter().for_each(|(address, data)| writer.add(address, data));
    }
    let file = writer.finish().ok_or_else(|| ME.permanent("a database holds at most 4 GiB"))?;
    let names = (tmp.as_bytes(), path.as_bytes());
    replace::file(ME, &file, (Path::new(tmp), Path::new(path)), names, Readers::ByUmask)?;
    Ok(0)
}

/// Looks a client up.
///
/// # Errors
/// CDB cannot be read; temporary.
pub fn tcprulescheck(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("tcprulescheck");
    let path = args.first().ok_or_else(|| ME.usage("rules.cdb"))?;
    let failed = |error: std::io::Error| ME.system([b"unable to read ", path.as_bytes()].concat(), &error);
    let file = File::open(path).map_err(failed)?;
    let (ip, host, info) = (input::variable("TCPREMOTEIP"), input::variable("TCPREMOTEHOST"), input::variable("TCPREMOTEINFO"));
    let client = Client { ip: ip.as_deref().unwrap_or(b"0.0.0.0"), host: host.as_deref(), info: info.as_deref() };
    let rule = find(client, |key| cdb::find(&file, key, DATA_LEN_MAX)).map_err(failed)?;
    let told = rule.map_or_else(|| b"default:\nallow connection\n".to_vec(), |rule| told(&rule));
    ME.print(&told).map(|()| 0)
}

fn told(rule: &Rule) -> Vec<u8> {
    let mut out = [b"rule ", &rule.address[..], b":\n"].concat();
    if rule.is_denied {
        return [&out[..], b"deny connection\n"].concat();
    }
    for variable in &rule.variables {
        let equals = variable.iter().position(|b| *b == b'=').unwrap_or(variable.len());
        let name = variable.get(..equals).unwrap_or_default();
        let value = variable.get(equals.saturating_add(1)..).unwrap_or_default();
        out.extend([b"set environment variable ", name, b"=", value, b"\n"].concat());
    }
    out.extend_from_slice(b"allow connection\n");
    out
}
