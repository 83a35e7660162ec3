-- forget(age ms, limit) -> n: dead letters older than that are gone for good.
local age, limit = assert(tonumber(ARGV[1])), assert(tonumber(ARGV[2]))
check_types()
local ids = redis.call('ZRANGEBYSCORE', DEAD, '-inf', now - age, 'LIMIT', 0, limit)
all('ZREM', DEAD, ids)
all('HDEL', MESSAGES, ids)
all('HDEL', HISTORY, ids)
all('HDEL', RECOVERED, ids)
return #ids
