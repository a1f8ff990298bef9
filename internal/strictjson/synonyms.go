package strictjson

// synonyms says what settings are called elsewhere: in other tools, and in the files of
// other programs. A name in lower case and without _ and - stands for one or more names
// of natty's; the first that is known where the key stands is proposed. It is for hints
// only: a file must use natty's own names.
var synonyms = map[string][]string{
	"url": {"servers", "brokers"}, "urls": {"servers", "brokers"}, "natsurl": {"servers", "brokers"},
	"natsurls": {"servers", "brokers"}, "server": {"servers", "brokers"}, "servers": {"servers", "brokers"},
	"broker": {"brokers", "servers"}, "brokers": {"brokers", "servers"}, "natsservers": {"servers", "brokers"},
	"host": {"servers", "brokers"}, "hosts": {"servers", "brokers"}, "address": {"servers", "brokers"},
	"addresses": {"servers", "brokers"}, "endpoint": {"servers", "brokers"}, "endpoints": {"servers", "brokers"},

	"username": {"user"}, "login": {"user"}, "pass": {"password"}, "passwd": {"password"},
	"authtoken": {"token"},
	"creds":     {"creds_file"}, "credentials": {"creds_file"}, "credentialsfile": {"creds_file"},
	"credentialspath": {"creds_file"}, "credspath": {"creds_file"}, "usercredentials": {"creds_file"},
	"userjwt": {"creds_file"}, "jwt": {"creds_file"}, "jwtfile": {"creds_file"},
	"nkey": {"nkey_file"}, "nkeyseed": {"nkey_file"}, "nkeyseedfile": {"nkey_file"}, "seedfile": {"nkey_file"},

	"ca": {"ca_file"}, "cacert": {"ca_file"}, "cacertfile": {"ca_file"}, "cacerts": {"ca_file"},
	"capath": {"ca_file"}, "rootca": {"ca_file"}, "rootcas": {"ca_file"}, "rootcafile": {"ca_file"},
	"tlsca": {"ca_file"}, "tlscafile": {"ca_file"},
	"cert": {"cert_file"}, "certificate": {"cert_file"}, "clientcert": {"cert_file"}, "certpath": {"cert_file"},
	"clientcertfile": {"cert_file"}, "tlscert": {"cert_file"}, "tlscertfile": {"cert_file"},
	"key": {"key_file"}, "privatekey": {"key_file"}, "clientkey": {"key_file"}, "keypath": {"key_file"},
	"clientkeyfile": {"key_file"}, "tlskey": {"key_file"}, "tlskeyfile": {"key_file"},
	"insecure": {"insecure_skip_verify"}, "skipverify": {"insecure_skip_verify"},
	"tlsinsecure": {"insecure_skip_verify"}, "tlsskipverify": {"insecure_skip_verify"},
	"tlsfirst": {"handshake_first"}, "tlshandshakefirst": {"handshake_first"}, "sni": {"server_name"},

	"clientname": {"name"}, "clientid": {"name"}, "connectionname": {"name"}, "servicename": {"name"},
	"jsdomain": {"domain"}, "jetstreamdomain": {"domain"}, "jsapiprefix": {"api_prefix"},
	"jsprefix": {"api_prefix"}, "jetstreamprefix": {"api_prefix"}, "numreplicas": {"replicas"},
	"noreconnect": {"disable_reconnect"}, "allowreconnect": {"disable_reconnect"},
	"enable": {"enabled"}, "disabled": {"enabled"}, "active": {"enabled"},

	"stream": {"stream_name"}, "streams": {"stream_name"},
	"durable": {"consumer_group"}, "durablename": {"consumer_group"}, "consumer": {"consumer_group"},
	"consumername": {"consumer_group"}, "durableconsumer": {"consumer_group"},
	"durableconsumername": {"consumer_group"}, "group": {"consumer_group"}, "groupid": {"consumer_group"},
	"groupname": {"consumer_group"}, "queue": {"consumer_group"}, "queuegroup": {"consumer_group"},
	"subject": {"subjects"}, "topic": {"subjects"}, "topics": {"subjects"}, "filter": {"subjects"},
	"filters": {"subjects"}, "filtersubject": {"subjects"}, "filtersubjects": {"subjects"},
	"subjectfilter": {"subjects"}, "subscribe": {"subjects"},

	"workers": {"concurrency"}, "parallelism": {"concurrency"}, "maxconcurrency": {"concurrency"},
	"maxconcurrent": {"concurrency"}, "threads": {"concurrency"},
	"maxinflight": {"max_ack_pending"}, "maxacks": {"max_ack_pending"}, "maxacksoutstanding": {"max_ack_pending"},
	"maxunacked": {"max_ack_pending"}, "ackpending": {"max_ack_pending"},
	"batch": {"max_poll_records"}, "batchsize": {"max_poll_records"}, "prefetch": {"max_poll_records"},
	"maxbatch": {"max_poll_records"}, "pullmaxmessages": {"max_poll_records"}, "fetchsize": {"max_poll_records"},
	"maxretries": {"max_deliver"}, "retries": {"max_deliver"}, "maxdeliveries": {"max_deliver"},
	"maxattempts": {"max_deliver"}, "attempts": {"max_deliver"}, "maxredeliveries": {"max_deliver"},
	"deadlettersubject": {"dead_letter"}, "deadletterqueue": {"dead_letter"}, "deadlettertopic": {"dead_letter"},
	"dlq": {"dead_letter"}, "dlqsubject": {"dead_letter"}, "dlqtopic": {"dead_letter"},
	"ack": {"ack_wait"}, "acktimeout": {"ack_wait"}, "visibilitytimeout": {"ack_wait"},
	"heartbeat": {"heartbeat_interval"}, "idleheartbeat": {"heartbeat_interval"},
	"timeout": {"handler_timeout", "publish_timeout"}, "processingtimeout": {"handler_timeout"},
	"shutdowntimeout": {"drain_timeout"}, "gracefulshutdowntimeout": {"drain_timeout"},
	"backoff": {"backoff_min"}, "retrydelay": {"backoff_min"}, "nakdelay": {"backoff_min"},
	"retrybackoff": {"backoff_min"}, "maxbackoff": {"backoff_max"}, "minbackoff": {"backoff_min"},
	"deliver": {"deliver_policy"}, "startfrom": {"deliver_policy"}, "startposition": {"deliver_policy"},
	"createstream": {"create_stream_if_not_exist"}, "autocreate": {"create_stream_if_not_exist"},
	"autocreatestream": {"create_stream_if_not_exist"}, "autoprovision": {"create_stream_if_not_exist"},
	"createstreamifnotexists": {"create_stream_if_not_exist"},
}
