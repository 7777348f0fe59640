	if [ -s /etc/qmail/control/me ]; then
		me=$(head -n 1 /etc/qmail/control/me)
	elif [ -s /etc/mailname ]; then
		me=$(head -n 1 /etc/mailname)
	else
		me=$(hostname --fqdn 2>/dev/null || hostname 2>/dev/null || cat /proc/sys/kernel/hostname)
	fi
	me=${me:-localhost}
	# Mail systems need a name with a dot: without one, addresses of this host are no addresses.
	case "$me" in *.*) ;; *) me=$me.localdomain ;; esac
	# New roles and new files of this version; what is there stays.
	/usr/lib/qmail/qmail setup --me "$me" --local >/dev/null
