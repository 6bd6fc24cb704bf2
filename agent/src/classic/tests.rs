use super::*;
use passerelle_config::{ByteSize, HumanDuration};
use std::{
    fs::{self, File},
    path::Path,
    time::SystemTime,
};
use tracing_subscriber::layer::SubscriberExt as _;

fn settings(dir: &Path) -> ClassicLog {
    ClassicLog {
        dir: dir.join("logs"),
        keep: HumanDuration(Duration::from_secs(30 * 86_400)),
        quota: ByteSize(1 << 20),
    }
}

/// The content of the one file whose name begins so.
fn content(dir: &Path, prefix: &str) -> String {
    let names = fs::read_dir(dir.join("logs")).unwrap().map(|entry| entry.unwrap().file_name());
    let found: Vec<_> =
        names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with(prefix)).collect();
    // A test may run while the hour or the day turns.
    found.iter().map(|name| fs::read_to_string(dir.join("logs").join(name)).unwrap()).collect()
}

#[test]
fn lines_have_the_classic_form_and_go_where_they_belong() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, layer) = ClassicLogs::start(&settings(dir.path())).unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        let _span = tracing::info_span!("job", job_id = 7, resource = "compta").entered();
        tracing::info!(elapsed_ms = 12, "Job\nsucceeded");
        tracing::warn!(path = "a|b", "Careful");
        tracing::error!("It failed");
        tracing::error!(critical = true, "The process ends");
    });
    drop(logs);
    let everything = content(dir.path(), "infos_");
    let lines: Vec<Vec<&str>> = everything.lines().map(|line| line.splitn(5, '|').collect()).collect();
    let levels: Vec<&str> = lines.iter().map(|parts| parts[1]).collect();
    assert_eq!(levels, ["info", "warning", "erreur", "critique"]);
    let pid = format!("pid:{}", std::process::id());
    for parts in &lines {
        let format = "%Y-%m-%d %H:%M:%S";
        assert!(jiff::civil::DateTime::strptime(format, parts[0]).is_ok(), "{parts:?}");
        assert_eq!((parts[2], parts[3]), (pid.as_str(), "classic"));
        assert!(parts[4].ends_with('|'));
    }
    assert_eq!(lines[0][4], "Job succeeded elapsed_ms=12 job_id=7 resource=compta|");
    assert_eq!(lines[1][4], "Careful path=a|b job_id=7 resource=compta|");
    assert_eq!(lines[3][4], "The process ends job_id=7 resource=compta|");
    let errors = content(dir.path(), "err_");
    assert_eq!(errors.lines().count(), 3);
    assert!(!errors.contains("|info|"));
}

#[test]
fn old_files_and_those_past_the_quota_go_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    fs::create_dir(&settings.dir).unwrap();
    let make = |name: &str, size: u64, days: u64| {
        let file = File::create(settings.dir.join(name)).unwrap();
        file.set_len(size).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(days * 86_400)).unwrap();
    };
    make("err_20200101.log", 10, 31);
    make("infos_20200101-06.log", 10, 29);
    make("infos_20200102-06.log", 900 << 10, 2);
    make("infos_20200103-06.log", 900 << 10, 1);
    make("infos_old.log", 10, 400);
    make("infos_20200101-06.log.gz", 10, 400);
    let mut files = Files::open(&settings).unwrap();
    files.tend();
    let mut names: Vec<String> = fs::read_dir(&settings.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("2020") || name.contains("old"))
        .collect();
    names.sort();
    assert_eq!(names, ["infos_20200101-06.log.gz", "infos_20200103-06.log", "infos_old.log"]);
}

#[test]
fn what_cannot_be_written_is_counted_and_told_later() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let mut files = Files::open(&settings).unwrap();
    let line = |message: &str| Line {
        at: clock::now(),
        level: Level::Info,
        zone: "test",
        message: message.to_owned(),
    };
    files.write(&line("first"));
    fs::remove_dir_all(&settings.dir).unwrap();
    fs::write(&settings.dir, "not a folder").unwrap();
    files.tend();
    files.write(&line("second"));
    files.write(&line("third"));
    fs::remove_file(&settings.dir).unwrap();
    fs::create_dir(&settings.dir).unwrap();
    files.write(&line("fourth"));
    let everything = content(dir.path(), "infos_");
    assert!(everything.contains("|log|2 lines are missing here: they could not be written|"), "{everything}");
    assert!(everything.contains("|test|fourth|") && !everything.contains("second"), "{everything}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("logs"), "a file").unwrap();
    let error = ClassicLogs::start(&settings(dir.path())).unwrap_err().to_string();
    assert!(error.contains("log.classic_dir") && error.contains("logs"), "{error}");
}
