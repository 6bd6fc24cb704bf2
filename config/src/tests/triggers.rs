//! Triggers, with their defaults and their mistakes.

use super::*;

#[test]
fn triggers_are_read_with_their_defaults() {
    let text = "[resources.r]\nconnector = \"file\"\nurl = \"file:///x\"\n\
                [[resources.r.pickup]]\npattern = \"*.csv\"\nafter = \"keep\"\n\
                [[resources.r.pickup]]\nname = \"b\"\nfolder = \"in/\"\npattern = \"**/*\"\nstable = { looks = 3 }\n\
                order = \"time\"\nafter = { move_to = \"done/\" }\nmax_size = \"1MiB\"\nevery = \"5s\"\n\
                [[resources.r.watch]]\npath = \"prices.csv\"\n";
    let dir = folder(&[("agent.toml", format!("{HUB}{text}").as_bytes())]);
    let config = load_in(dir.path(), &[]).unwrap_or_else(|findings| panic!("{findings}"));
    let [first, second] = config.resources[0].pickups.as_slice() else { panic!() };
    assert_eq!((first.name.as_str(), first.folder.as_str(), first.order), ("pickup", "", None));
    assert_eq!(first.stable, crate::Stable::Quiet(crate::HumanDuration(crate::defaults::QUIET)));
    assert_eq!((first.after.clone(), first.every), (crate::After::Keep, crate::defaults::EVERY));
    assert_eq!((second.folder.as_str(), second.order), ("in", Some(crate::Order::Time)));
    assert_eq!(second.stable, crate::Stable::Looks(3));
    assert_eq!(second.after, crate::After::MoveTo("done".to_owned()));
    let [watch] = config.resources[0].watches.as_slice() else { panic!() };
    assert_eq!((watch.name.as_str(), watch.path.as_str()), ("watch", "prices.csv"));
}

#[test]
fn every_mistake_of_a_trigger_is_told_at_its_place() {
    let resource = "[resources.r]\nconnector = \"file\"\nurl = \"file:///x\"\n";
    check(
        &format!(
            "{resource}[[resources.r.pickup]]\nfolder = \"../x\"\npattern = \"[\"\nevery = \"1ms\"\nstable = \"later\"\nquiet = 1\n"
        ),
        &[
            "agent.toml:6:1: resources.r.pickup[1].after: missing; say what follows: \"delete\", \"keep\", or { move_to = \"done\" }",
            "agent.toml:7:10: resources.r.pickup[1].folder: has a name `.` or `..`: it must lead straight down from the resource's root",
            "agent.toml:8:11: resources.r.pickup[1].pattern: not a glob: unclosed character class; missing ']'",
            "agent.toml:9:9: resources.r.pickup[1].every: expected a duration from \"1s\" to \"24h\"",
            "agent.toml:10:10: resources.r.pickup[1].stable: unknown value; expected one of \"rename\", \"quiet\", \"looks\", \"done_marker\"",
            "agent.toml:11:1: resources.r.pickup[1].quiet: unknown key; known keys: after, every, folder, max_size, name, order, pattern, stable",
        ],
    );
    check(
        &format!(
            "{resource}[[resources.r.pickup]]\npattern = \"**/*\"\nafter = {{ move_to = \"done\" }}\n\
             [[resources.r.pickup]]\npattern = \"*\"\nafter = \"delete\"\nstable = {{ done_marker = \"done\" }}\n\
             [[resources.r.watch]]\nname = \"A\"\npath = \"\"\n"
        ),
        &[
            "agent.toml:8:21: resources.r.pickup[1].after.move_to: leads where the pattern takes files from: they would be taken again and again; name a folder outside it, or a narrower pattern",
            "agent.toml:9:1: resources.r.pickup[2].name: another trigger of this resource is named \"pickup\" too; give each a `name` of its own",
            "agent.toml:12:26: resources.r.pickup[2].stable.done_marker: expected `{name}` once, where the file's name stands; write one such as \"{name}.done\"",
            "agent.toml:14:8: resources.r.watch[1].name: not a trigger's name: a name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit",
            "agent.toml:15:8: resources.r.watch[1].path: names no file",
        ],
    );
}

#[test]
fn a_change_feed_is_read_with_its_defaults_and_its_mistakes_are_told() {
    let resource = "[resources.r]\nconnector = \"crm\"\n";
    let text = format!(
        "{resource}[[resources.r.changes]]\nentity = \"contact\"\n[[resources.r.changes]]\nname = \"orders\"\n\
         entity = \"order\"\nstart = \"2026-11-01T00:00:00Z\"\npage_size = 10\nfields = [\"number\"]\nevery = \"5s\"\n"
    );
    let dir = folder(&[("agent.toml", format!("{HUB}{text}").as_bytes())]);
    let config = load_in(dir.path(), &[]).unwrap_or_else(|findings| panic!("{findings}"));
    let [first, second] = config.resources[0].changes.as_slice() else { panic!() };
    assert_eq!(
        (first.name.as_str(), first.start, first.page_size),
        ("changes", crate::ChangesStart::Now, 100)
    );
    let since = crate::ChangesStart::Since("2026-11-01T00:00:00Z".parse().unwrap());
    assert_eq!((second.name.as_str(), second.start, second.page_size), ("orders", since, 10));
    assert_eq!(second.fields.as_deref(), Some(&["number".to_owned()][..]));
    check(
        &format!("{resource}[[resources.r.changes]]\nstart = \"later\"\npage_size = 0\nevery = \"1ms\"\n"),
        &[
            "agent.toml:5:1: resources.r.changes[1].entity: missing; name the entity, such as \"contact\"",
            "agent.toml:6:9: resources.r.changes[1].start: expected \"now\", \"beginning\" or a time such as \"2026-11-01T00:00:00Z\"",
            "agent.toml:7:13: resources.r.changes[1].page_size: expected an integer from 1 to 1000, found 0",
            "agent.toml:8:9: resources.r.changes[1].every: expected a duration from \"1s\" to \"24h\"",
        ],
    );
}
