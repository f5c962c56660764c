//! `list` and `ps`.

use std::os::unix::fs::MetadataExt;

use super::CliError;
use super::args::{Format, Global};
use super::log;
use super::record::Record;

/// Prints the containers below the root directory, by id.
pub(super) fn list(global: &Global, quiet: bool, format: Format) -> Result<(), CliError> {
    let states: Vec<serde_json::Value> =
        records(global)?.iter().map(|record| state(global, record)).collect();
    if quiet {
        let ids: Vec<String> = states.iter().map(|state| format!("{}\n", text(&state["id"]))).collect();
        return log::print(&ids.concat());
    }
    if format == Format::Json {
        return log::print(&format!("{}\n", serde_json::Value::Array(states)));
    }
    let columns = ["id", "pid", "status", "bundle", "created", "owner"];
    let mut rows = vec![columns.map(str::to_uppercase)];
    rows.extend(states.iter().map(|state| columns.map(|column| text(&state[column]))));
    log::print(&table(&rows))
}

/// What is half made or half removed is no container.
fn records(global: &Global) -> Result<Vec<Record>, CliError> {
    let entries = match std::fs::read_dir(&global.root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => {
            other.map_err(|error| CliError::because(&format!("read {}", global.root.display()), &error))?
        }
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut records: Vec<Record> = names.filter_map(|name| Record::load(global, &name).ok()).collect();
    records.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(records)
}

fn state(global: &Global, record: &Record) -> serde_json::Value {
    let owner = match std::fs::metadata(global.root.join(&record.id)).map(|directory| directory.uid()) {
        Ok(0) => "root".to_owned(),
        Ok(uid) => format!("#{uid}"),
        Err(_) => String::new(),
    };
    record.state(global, &owner)
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Columns as wide as their widest cell, at least 12, and three spaces between them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// Prints the processes of a container: pids, or the lines of ps(1) that are about them.
pub(super) fn ps(global: &Global, id: &str, format: Format, arguments: &[String]) -> Result<(), CliError> {
    let record = Record::load(global, id)?;
    let pids = record
        .cgroup()?
        .pids_below()
        .map_err(|error| CliError::because("list the processes of the cgroup", &error))?;
    if format == Format::Json {
        return log::print(&format!("{}\n", serde_json::json!(pids)));
    }
    let lines = filter(&run_ps(arguments)?, &pids)?;
    log::print(&lines)
}

#[expect(clippy::disallowed_methods, reason = "the command line is a shell, and its user asks for ps(1)")]
fn run_ps(arguments: &[String]) -> Result<String, CliError> {
    let mut command = std::process::Command::new("ps");
    if arguments.is_empty() {
        command.arg("-ef");
    }
    let output = command.args(arguments).output().map_err(|error| CliError::because("start ps", &error))?;
    if !output.status.success() {
        return Err(CliError::new(format!("ps: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The title, and the lines whose PID column is one of these.
fn filter(output: &str, pids: &[i32]) -> Result<String, CliError> {
    let mut lines = output.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| CliError::new("couldn't find PID field in ps output"))?;
    let mut kept = format!("{title}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_lines_of_ps_are_kept() {
        let output = "UID PID PPID CMD\nroot 1 0 init\nroot 12 1 sh 1\n";
        assert_eq!(filter(output, &[12]).unwrap(), "UID PID PPID CMD\nroot 12 1 sh 1\n");
        filter("USER COMMAND\n", &[1]).expect_err("without pids there is nothing to go by");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID".to_owned(), "PID".to_owned()], ["a-name-of-sixteen".to_owned(), "1".to_owned()]];
        assert_eq!(table(&rows), "ID                  PID\na-name-of-sixteen   1\n");
    }
}
