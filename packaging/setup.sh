	# What the first line says that is no comment, without what follows a blank.
	first_word() { sed -n 's/^[[:space:]]*//; /^#/d; /^$/d; s/[[:space:]].*//; p; q' "$1" 2>/dev/null || :; }
	# New roles and new files of this version; what is there stays, and so does its name.
	me=
	status=100
	if [ -s /etc/qmail/control/me ]; then
		status=0
		/usr/lib/qmail/qmail setup --local >/dev/null || status=$?
		me=$(first_word /etc/qmail/control/me)
	fi
	for name in "$(first_word /etc/mailname)" "$(hostname --fqdn 2>/dev/null || :)" "$(cat /proc/sys/kernel/hostname)" localhost; do
		# 100: that is no name.
		if [ "$status" != 100 ]; then break; fi
		if [ -z "$name" ]; then continue; fi
		# Mail systems need a name with a dot: without one, addresses of this host are no addresses.
		case "$name" in *.*) me=$name ;; *) me=$name.localdomain ;; esac
		status=0
		/usr/lib/qmail/qmail setup --me "$me" --local >/dev/null || status=$?
	done
	if [ "$status" != 0 ]; then exit "$status"; fi
